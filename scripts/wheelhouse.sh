#!/bin/bash
# Puts a CPU build of torch into a folder, so that images and environments without GPUs don't carry gigabytes of CUDA.
#
#   scripts/wheelhouse.sh DIR PYTHON     tries what pip finds on this machine, then the CPU wheel index, and
#                                        leaves DIR empty when neither has one (then torch's default build is used)
set -euo pipefail
DIR=$1 PYTHON=$2 VERSION=${TORCH_VERSION:-2.13.0}
mkdir -p "$DIR"
if ls "$DIR"/torch-"$VERSION"*.whl >/dev/null 2>&1; then exit 0; fi
echo "torch: looking for the CPU build (about 200 MB) …"
fetch() { "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --dest "$DIR" "$@" 2>>"$DIR/log"; }
if fetch "torch==$VERSION+cpu"; then
    echo "torch: CPU build found by pip."
elif fetch --index-url "${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}" "torch==$VERSION"; then
    echo "torch: CPU build taken from the CPU wheel index."
else
    echo "torch: no CPU build to be had (see $DIR/log); the default build is used, which is larger."
fi
