#!/bin/sh
# Writes the lock files: versions and hashes, no addresses.
set -eu
cd "$(dirname "$0")"
common="--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet"
# Build-backend included: the package itself is installed without build isolation.
# shellcheck disable=SC2086
uv pip compile pyproject.toml --extra build $common -o requirements.lock
# shellcheck disable=SC2086
uv pip compile pyproject.toml --extra build --extra stack $common -c requirements.lock -o requirements-stack.lock
# shellcheck disable=SC2086
uv pip compile pyproject.toml --extra build --extra stack --extra dev $common -c requirements-stack.lock -o requirements-dev.lock
