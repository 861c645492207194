#!/bin/bash
# Installs the Debian packages that the tests drive as a user would: OpenSSH's clients, rsync, debootstrap, docker-compose.
set -euo pipefail
missing=()
want() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || missing+=("$2"); }
want ssh openssh-client; want sftp openssh-client; want rsync rsync; want debootstrap debootstrap; want docker-compose docker-compose
[ ${#missing[@]} = 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "The Docker tests need these packages: ${missing[*]}" >&2
    exit 1
fi
echo "Installing ${missing[*]}."
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
