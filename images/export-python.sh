#!/bin/sh
# export-python.sh DEST: copies a self-contained Python from /usr/local to DEST, with the libraries that it needs.
# With PYTHON_SOURCE=distribution DEST stays empty: the base's own packages bring Python.
set -eu
dest=$1
mkdir -p "$dest"
[ "${PYTHON_SOURCE:-distribution}" = image ] || exit 0

python=$(ls /usr/local/bin/python3.1[1-9] 2>/dev/null | head -n 1 || true)
if [ -z "$python" ]; then
    echo "navarch: PYTHON_IMAGE has no Python 3.11 or newer in /usr/local/bin (an image like python:3.11-slim-bullseye does)" >&2
    exit 1
fi
name=$(basename "$python")
mkdir -p "$dest/bin" "$dest/lib" "$dest/include" "$dest/bundled"
cp -a "$python" "$dest/bin/"
ln -s "$name" "$dest/bin/python3"
cp -a "/usr/local/lib/$name" "$dest/lib/"
cp -a /usr/local/include/"$name"* "$dest/include/" 2>/dev/null || true
cp -a /usr/local/lib/libpython3* "$dest/lib/" 2>/dev/null || true
rm -rf "$dest/lib/$name/test" "$dest/lib/$name/site-packages"/* "$dest/lib/$name"/config-*/*.a
find "$dest/lib/$name" -name __pycache__ -type d -prune -exec rm -rf {} +

# Libraries outside glibc: install-system.sh puts those in place that the base lacks.
for object in "$python" "$dest/lib/$name"/lib-dynload/*.so; do
    ldd "$object" 2>/dev/null | awk '$2 == "=>" && $3 ~ "^/" { print $3 }'
done | sort -u | while read -r library; do
    case ${library##*/} in
        libc.so.*|libm.so.*|libdl.so.*|libpthread.so.*|librt.so.*|libutil.so.*|libpython3*|ld-linux*) ;;
        *) cp -L "$library" "$dest/bundled/" ;;
    esac
done
