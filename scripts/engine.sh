#!/bin/bash
# Makes sure that a Docker Engine answers: uses the one that does, or on Debian/Ubuntu as root installs docker.io and starts it.
#
#   scripts/engine.sh          prints which engine is used; exits 1 with advice when there is none to be had
#   scripts/engine.sh stop     stops an engine that this script started, and no other
set -euo pipefail
STATE=${NAVARCH_STATE:-.navarch}/engine
SOCKET=${DOCKER_HOST:-unix:///var/run/docker.sock}

answers() {
    "${PYTHON:-python3}" - "${SOCKET#unix://}" 2>/dev/null <<'ASK'
import socket, sys
engine = socket.socket(socket.AF_UNIX)
engine.settimeout(5)
engine.connect(sys.argv[1])
engine.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
sys.exit(b" 200 " not in engine.recv(64))
ASK
}

fail() {
    echo "No Docker Engine answers at $SOCKET, and $1." >&2
    echo "Install Docker Engine (on Debian or Ubuntu: apt-get install docker.io) and start it, or set DOCKER_HOST=unix:///path/to/docker.sock." >&2
    exit 1
}

if [ "${1:-}" = stop ]; then
    if [ -f "$STATE/dockerd.pid" ]; then
        pid=$(cat "$STATE/dockerd.pid")
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
            echo "Stopping the Docker Engine that was started here (pid $pid)."
            kill "$pid"
            for _ in $(seq 60); do [ -d "/proc/$pid" ] || break; sleep 0.5; done
        fi
        rm -f "$STATE/dockerd.pid"
    fi
    exit 0
fi

if answers; then
    echo "Using the Docker Engine at $SOCKET."
    exit 0
fi
[ "${SOCKET#unix://}" = /var/run/docker.sock ] || fail "DOCKER_HOST names a socket that is not the default, so none is started there"
[ "$(id -u)" = 0 ] || fail "only root can start one"
if ! command -v dockerd >/dev/null; then
    command -v apt-get >/dev/null || fail "this is not Debian or Ubuntu, where docker.io could be installed for you"
    echo "No Docker Engine here: installing Debian's docker.io (with iptables and iproute2)."
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    extra=()
    [ -d /run/systemd/system ] || extra+=(cgroupfs-mount)
    if [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ]; then extra+=(apparmor); fi
    apt-get install -y -qq --no-install-recommends docker.io iptables iproute2 ca-certificates "${extra[@]}" >/dev/null
fi
if [ -d /run/systemd/system ] && command -v systemctl >/dev/null && systemctl start docker 2>/dev/null; then
    :
else
    echo "Starting a Docker Engine (dockerd; log in $STATE/dockerd.log)."
    mkdir -p "$STATE"
    old=$(cat /var/run/docker.pid 2>/dev/null || true)
    if [ -n "$old" ] && [ "$(cat "/proc/$old/comm" 2>/dev/null)" != dockerd ]; then rm -f /var/run/docker.pid; fi
    setsid nohup dockerd >"$STATE/dockerd.log" 2>&1 </dev/null &
    echo $! >"$STATE/dockerd.pid"
fi
for _ in $(seq 120); do
    if answers; then echo "The Docker Engine at $SOCKET answers."; exit 0; fi
    sleep 0.5
done
tail -5 "$STATE/dockerd.log" >&2 2>/dev/null || true
fail "the one that was started did not come up within 60 s"
