#!/bin/sh
# fetch-packages.sh DEST PACKAGE…: downloads the packages that the base lacks (with all they depend on) to DEST.
# Only the distribution's own sources are asked: third-party lists in old CUDA images fail for keys that have expired.
set -eu
dest=$1; shift
mkdir -p "$dest"
export DEBIAN_FRONTEND=noninteractive
if ! command -v apt-get >/dev/null; then
    echo "navarch: this base has no apt-get: Navarch images need a Debian- or Ubuntu-like base" >&2
    exit 1
fi

parts=/etc/apt/sources.list.d
mkdir -p "$parts" /navarch/set-aside
for list in "$parts"/*; do
    case ${list##*/} in debian.sources|ubuntu.sources|'*') ;; *) mv "$list" /navarch/set-aside/ ;; esac
done
if [ -n "${APT_MIRROR:-}" ]; then
    # https://mirror/debian stands for the archive; the security archive lies beside it (Ubuntu's is the same folder).
    mirror=${APT_MIRROR%/}
    for list in /etc/apt/sources.list "$parts"/*.sources; do
        [ -f "$list" ] || continue
        sed -i -E -e "s#https?://[^ ]+/debian-security/?#SECURITY#g" -e "s#https?://[^ ]+#$mirror#g" \
            -e "s#SECURITY#$mirror-security#g" "$list"
    done
fi

options="-o Acquire::Retries=3 -o Acquire::http::Timeout=60 -o APT::Get::List-Cleanup=0"
if [ -s /navarch/network/ca-bundle.pem ]; then
    options="$options -o Acquire::https::CaInfo=/navarch/network/ca-bundle.pem"
fi
# shellcheck disable=SC2086
apt-get $options -qq update
rm -f /etc/apt/apt.conf.d/docker-clean /var/cache/apt/archives/*.deb
# shellcheck disable=SC2086
apt-get $options -qq -y install --download-only --no-install-recommends "$@"
mv /var/cache/apt/archives/*.deb "$dest/" 2>/dev/null || true
echo "navarch: $(ls "$dest" | wc -l) packages fetched"
