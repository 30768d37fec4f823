#!/bin/sh
# Removes what the project has put on this machine: data, downloads, the virtual environment.
# usage: uninstall.sh VENV [--yes]
set -eu

venv=$1
answer=${2:-}
command=$venv/bin/kstream-agg

if [ "$answer" != "--yes" ]; then
    printf 'This stops the stack and removes its data, the downloaded components and %s.\nGo on? [y/N] ' "$venv"
    read -r typed
    case $typed in y | Y | yes) ;; *) echo "nothing removed"; exit 1 ;; esac
fi
if [ -x "$command" ]; then
    "$command" stop
    "$command" reset --yes
    "$command" stack clean-cache
else
    echo "no $venv: nothing was running from this checkout"
fi
rm -rf "$venv"
echo "removed"
