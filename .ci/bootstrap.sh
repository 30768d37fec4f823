#!/bin/sh
# Creates the checkout's virtual environment and installs one lock file and the package into it.
# usage: bootstrap.sh LOCKFILE VENV   (PYTHON names the interpreter)
#        bootstrap.sh --check VENV    only looks, and shows every prerequisite
set -eu

lock=$1
venv=$2
python=${PYTHON:-python3}
package=services/kstream-agg
need_mb=1500
problems=0

# Shows one prerequisite; what is missing ends the script, but with --check only at its end.
report() { # ok|missing WHAT REMEDY
    if [ "$1" = ok ]; then
        [ "$lock" = --check ] && printf 'ok       %s\n' "$2"
        return 0
    fi
    printf 'error: %s\nremedy: %s\n' "$2" "$3" >&2
    problems=1
    [ "$lock" = --check ] || exit 1
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

if ! command -v "$python" >/dev/null 2>&1; then
    report missing "no Python found as '$python'" \
        "install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    report missing "$("$python" --version 2>&1) is too old" \
        "install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"
else
    report ok "$("$python" --version 2>&1)" ""
    if "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        report ok "the venv module" ""
    else
        report missing "this Python has no venv module" \
            "on Debian and Ubuntu: apt-get install python3-venv"
    fi
fi
free_mb=$(df -Pk . | awk 'NR == 2 {print int($4 / 1024)}')
if [ -x "$venv/bin/python" ] || [ "$free_mb" -ge "$need_mb" ]; then
    report ok "$free_mb MB free on this disk" ""
else
    report missing "only $free_mb MB are free on this disk" \
        "free $need_mb MB: the environment takes about 700 MB, the components 1 GB"
fi

[ "$lock" = --check ] && exit "$problems"

# An environment whose Python is gone, or that was made elsewhere, has broken scripts.
if [ "$(cat "$venv/.made-in" 2>/dev/null)" != "$(pwd -P)" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    rm -rf "$venv"
    printf 'creating %s\n' "$venv"
    "$python" -m venv "$venv"
    pwd -P >"$venv/.made-in"
fi

fail() {
    printf 'error: %s\nremedy: %s\n' "$1" "$2" >&2
    exit 1
}

printf 'installing %s (once)\n' "$lock"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$package/$lock" ||
    fail "the dependencies could not be installed" "see the lines above; is the package index reachable?"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable "$package" ||
    fail "the package could not be installed" "see the lines above"
