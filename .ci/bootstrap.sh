#!/bin/sh
# Creates the checkout's virtual environment and installs one lock file and the package into it.
# usage: bootstrap.sh LOCKFILE VENV   (PYTHON names the interpreter)
set -eu

lock=$1
venv=$2
python=${PYTHON:-python3}
package=services/kstream-agg

fail() {
    printf 'error: %s\n' "$1" >&2
    printf 'remedy: %s\n' "$2" >&2
    exit 1
}

# A distribution's python3 may be older than one that stands beside it.
if [ "$python" = python3 ]; then
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi

command -v "$python" >/dev/null 2>&1 ||
    fail "no Python found as '$python'" "install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version 2>&1) is too old" "install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "this Python has no venv module" "on Debian and Ubuntu: apt-get install python3-venv"
free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
[ "$free_kb" -ge 1500000 ] ||
    fail "only $((free_kb / 1024)) MB are free on this disk" "free at least 1.5 GB: the environment takes about 1 GB"

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    rm -rf "$venv"
    printf 'creating %s\n' "$venv"
    "$python" -m venv "$venv"
fi

printf 'installing %s (once)\n' "$lock"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$package/$lock" ||
    fail "the dependencies could not be installed" "see the lines above; is the package index reachable?"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable "$package" ||
    fail "the package could not be installed" "see the lines above"
