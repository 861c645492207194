#!/bin/bash
# Installs the Debian packages that a bare machine lacks.
#
#   scripts/packages.sh demo        debootstrap: makes a base image where no container registry answers
#   scripts/packages.sh unit        OpenSSH's client, against which SSH settings are checked
#   scripts/packages.sh training    a C++ compiler: kernels' source runs on the CPU
#   scripts/packages.sh browser     what the docker tests need, and Chromium
#   scripts/packages.sh docker      what users drive containers with: OpenSSH's client, rsync, docker-compose; ip, debootstrap
#   scripts/packages.sh hosts       what hosts of namespaces are made of: ip, iptables, nsenter, OpenSSH's client and server
#
# Where they can't be installed (no root, or not Debian or Ubuntu) tests stop with the names of what is missing. The demo
# goes on: a base image that the engine has or can pull needs no debootstrap, and the build says so when it does.
set -euo pipefail
missing=()
want() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || missing+=("$2"); }
case "${1:-}" in
    demo) want debootstrap debootstrap ;;
    unit) want ssh openssh-client ;;
    training) want g++ g++ ;;
    docker) want ssh openssh-client; want rsync rsync; want ip iproute2; want debootstrap debootstrap
        want docker-compose docker-compose ;;
    hosts) want debootstrap debootstrap; want ip iproute2; want iptables iptables; want nsenter util-linux
        want ssh openssh-client; want sshd openssh-server ;;
    browser) want debootstrap debootstrap; want chromium chromium ;;
    *) echo "usage: scripts/packages.sh demo|unit|training|docker|hosts|browser" >&2; exit 64 ;;
esac
[ ${#missing[@]} = 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    [ "$1" = demo ] && exit 0
    echo "The $1 tests need these packages, which only root can install (on Debian or Ubuntu): ${missing[*]}" >&2
    exit 1
fi
echo "Installing ${missing[*]}."
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
if [ "$1" = hosts ] && [ ! -e /usr/sbin/policy-rc.d ]; then  # the machine itself is to have no new service
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
