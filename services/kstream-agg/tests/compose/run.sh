#!/bin/sh
# The compose test: an engine, images, the demo in containers, and what must hold of it.
# usage: run.sh VENV [ARGUMENT of pytest]...
# Exit code 3: there is no engine here, and none may be started (engine.sh).
set -eu
venv=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../../.." && pwd)
folder=${KSTREAM_ENGINE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/kstream-agg-engine}

sh "$here/engine.sh" check "$folder"
trap 'sh "$here/engine.sh" stop "$folder"' EXIT
trap 'exit 130' INT TERM
sh "$here/engine.sh" start "$folder"
# shellcheck disable=SC1091 # written by engine.sh
. "$folder/env"

COMPOSE_FILE=$root/docker-compose.yml:$root/docker-compose.override.yaml
if timeout 60 docker buildx imagetools inspect python:3.13.7-slim-trixie >/dev/null 2>&1; then
    printf 'the public images can be pulled\n'
else
    printf 'no image registry can be reached: building stand-ins\n'
    sh "$here/standins.sh" "$folder" "$venv"
    COMPOSE_FILE=$COMPOSE_FILE:$here/docker-compose.standins.yaml
fi
export COMPOSE_FILE
cd "$here/../.."
# Of two -m the last one counts.
"$venv/bin/pytest" tests/compose -m 'not cluster' "$@"
