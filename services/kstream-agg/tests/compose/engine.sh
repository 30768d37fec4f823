#!/bin/sh
# Gives this machine a Docker engine for the compose test, in a folder of its own.
# usage: engine.sh check FOLDER   says why there can be none (exit code 3), or nothing
#        engine.sh start FOLDER   writes FOLDER/env, to be read by the shell that calls docker
#        engine.sh stop FOLDER    ends one that `start` started; its images and volumes are removed (KEEP_ENGINE_DATA=1: kept)
#
# An engine that answers already, with Compose 2 and buildx, is used as it is. Otherwise, only with
# ALLOW_START_DOCKERD=1 and as root: the packages are downloaded from the machine's own Debian
# mirror and unpacked here. Nothing is installed, no file of the machine is changed.
# Exit code 3: there is no engine, and none may be started here.
set -eu

command=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
root=$folder/root
state=$folder/state
forward=/proc/sys/net/ipv4/ip_forward
# Debian 13 has Compose 2, buildx and a current engine; runc and the firewall's tools need the C
# library they were built for, and come from the machine's own release.
newest=trixie
from_newest="docker.io docker-cli docker-compose docker-buildx containerd"
from_own="runc iptables libip4tc2 libip6tc2 libxtables12 libnetfilter-conntrack3 libnfnetlink0
    libnftnl11 libmnl0 tini debootstrap"

say() { printf '%s\n' "$*" >&2; }

cannot() {
    say "no Docker engine: $1"
    exit 3
}

fetch_packages() {
    # shellcheck disable=SC1091 # every Debian has it
    release=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # apt-get's own placeholders
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v release="$release" '$2 == release && $3 == "main" {print $1; exit}')
    [ -n "$mirror" ] || cannot "this machine's apt has no source for $release"
    lists=$folder/apt
    rm -rf "$lists" "$root.new"
    mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial" "$lists/packages" "$root.new"
    for suite in "$release" "$newest"; do
        printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
            "$mirror" "$suite"
    done | sort -u >"$lists/sources.list"
    apt="-o Dir::Etc::SourceList=$lists/sources.list -o Dir::Etc::SourceParts=-
        -o Dir::State::Lists=$lists/lists -o Dir::Cache=$lists/cache
        -o APT::Sandbox::User=root -o Acquire::Languages=none -qq"
    wanted=
    for package in $from_newest; do wanted="$wanted $package/$newest"; done
    for package in $from_own; do wanted="$wanted $package/$release"; done
    say "downloading the engine's packages"
    # shellcheck disable=SC2086 # several words each
    apt-get $apt update
    # shellcheck disable=SC2086 # several words each
    (cd "$lists/packages" && apt-get $apt download $wanted)
    for package in "$lists"/packages/*.deb; do dpkg-deb --extract "$package" "$root.new"; done
    tables=xtables-nft-multi
    LD_LIBRARY_PATH=$(libraries "$root.new") XTABLES_LIBDIR=$(libraries "$root.new")/xtables \
        "$root.new/usr/sbin/$tables" iptables -t nat -L -n \
        >/dev/null 2>&1 || tables=xtables-legacy-multi
    for name in iptables ip6tables iptables-save iptables-restore; do
        ln -sf "$tables" "$root.new/usr/sbin/$name"
    done
    mkdir -p "$folder/config/cli-plugins"
    for plugin in compose buildx; do
        ln -sf "$root/usr/libexec/docker/cli-plugins/docker-$plugin" "$folder/config/cli-plugins/"
    done
    rm -rf "$root" "$lists"
    mv "$root.new" "$root"
}

libraries() { for place in "$1"/usr/lib/*-linux-gnu; do printf '%s' "$place"; done; }

answers() {
    docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1 &&
        docker buildx version >/dev/null 2>&1
}

check() {
    answers && return
    [ "${ALLOW_START_DOCKERD:-}" = 1 ] || cannot "none answers; ALLOW_START_DOCKERD=1 lets one be started"
    [ "$(id -u)" = 0 ] || cannot "starting one needs root"
    command -v apt-get >/dev/null || cannot "this is no Debian"
}

firewall() {
    LD_LIBRARY_PATH=$(libraries "$root") XTABLES_LIBDIR=$(libraries "$root")/xtables \
        "$root/usr/sbin/iptables-$1"
}

start() {
    if answers; then
        say "an engine answers: it is used"
        : >"$folder/env"
        return
    fi
    check
    [ -x "$root/usr/sbin/dockerd" ] || fetch_packages
    mkdir -p "$state"
    # What dockerd changes of the machine's network is put back at the end.
    firewall save >"$folder/firewall"
    cat "$forward" >"$folder/forward"
    PATH=$root/usr/sbin:$root/usr/bin:$PATH LD_LIBRARY_PATH=$(libraries "$root") \
        XTABLES_LIBDIR=$(libraries "$root")/xtables \
        setsid dockerd --data-root "$state/data" --exec-root "$state/exec" --pidfile "$state/pid" \
        --host "unix://$state/socket" --init-path "$root/usr/bin/tini-static" \
        >"$folder/dockerd.log" 2>&1 </dev/null &
    cat >"$folder/env" <<END
export PATH='$root/usr/bin':"\$PATH"
export DOCKER_HOST='unix://$state/socket' DOCKER_CONFIG='$folder/config'
END
    # shellcheck disable=SC1091 # written just now
    . "$folder/env"
    tries=0
    until docker info >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 60 ]; then
            tail -5 "$folder/dockerd.log" >&2
            cannot "dockerd does not come up"
        fi
        sleep 1
    done
    say "engine $(docker version --format '{{.Server.Version}}') runs"
}

stop() {
    # Empty: it was there before, and stays.
    [ -s "$folder/env" ] || return 0
    if [ -f "$state/pid" ]; then
        pid=$(cat "$state/pid")
        kill "$pid" 2>/dev/null || true
        tries=0
        while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 60 ]; do
            tries=$((tries + 1))
            sleep 1
        done
        for mount in "$state"/exec/netns/*; do umount "$mount" 2>/dev/null || true; done
        ip link delete docker0 2>/dev/null || true
        firewall restore <"$folder/firewall" || say "the firewall's rules of docker stay"
        cat "$folder/forward" >"$forward"
        rm -f "$folder/forward" "$folder/firewall" "$folder/env"
        say "the engine is stopped"
    fi
    if [ "${KEEP_ENGINE_DATA:-}" != 1 ]; then rm -rf "$state"; fi
}

case $command in
check | start | stop) "$command" ;;
*) say "usage: engine.sh check|start|stop FOLDER" && exit 2 ;;
esac
