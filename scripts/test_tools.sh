#!/bin/bash
# Installs the Debian packages that tests need.
#
#   scripts/test_tools.sh training    a C++ compiler: kernels' source runs on the CPU
#   scripts/test_tools.sh docker      what users drive containers with: OpenSSH's clients, rsync, debootstrap, docker-compose
set -euo pipefail
missing=()
want() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || missing+=("$2"); }
case "${1:-}" in
    training) want g++ g++ ;;
    docker) want ssh openssh-client; want sftp openssh-client; want rsync rsync; want debootstrap debootstrap; want docker-compose docker-compose ;;
    *) echo "usage: scripts/test_tools.sh training|docker" >&2; exit 64 ;;
esac
[ ${#missing[@]} = 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "The $1 tests need these packages: ${missing[*]}" >&2
    exit 1
fi
echo "Installing ${missing[*]}."
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
