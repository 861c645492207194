#!/bin/sh
# install-training.sh DEST: makes the virtual environment of the training programs. Wheels come from the wheelhouse
# first, then from the package index; torch also from PyTorch's own index where that answers.
set -eu
dest=$1
cd /navarch
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_DEFAULT_TIMEOUT=60
[ -n "${PIP_INDEX_URL:-}" ] || unset PIP_INDEX_URL
[ -n "${PIP_EXTRA_INDEX_URL:-}" ] || unset PIP_EXTRA_INDEX_URL
[ -n "${PIP_TRUSTED_HOST:-}" ] || unset PIP_TRUSTED_HOST
if [ -s network/ca-bundle.pem ]; then
    export PIP_CERT=/navarch/network/ca-bundle.pem SSL_CERT_FILE=/navarch/network/ca-bundle.pem
fi

python=/usr/bin/python3
[ ! -x /opt/navarch-python/bin/python3 ] || python=/opt/navarch-python/bin/python3
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "navarch: $("$python" --version) of this base is too old: set \`python:\` in the recipe to an image with Python 3.11" >&2
    exit 1
fi
"$python" -m venv "$dest"

set -- --find-links wheelhouse
if ! ls wheelhouse/torch-*.whl >/dev/null 2>&1 && [ -n "${TORCH_INDEX_URL:-}" ]; then
    if "$dest/bin/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)' "$TORCH_INDEX_URL/torch/" 2>/dev/null; then
        set -- "$@" --extra-index-url "$TORCH_INDEX_URL"
    else
        echo "navarch: $TORCH_INDEX_URL does not answer: torch comes from the package index"
    fi
fi
echo "navarch: installing $(grep -h '^torch' torch.txt) and the training packages"
"$dest/bin/pip" install -q --no-compile "$@" -r torch.txt -r requirements.txt
# These name versions of torch and of each other that they don't need; what they do need is in requirements.txt.
"$dest/bin/pip" install -q --no-compile --use-pep517 "$@" --no-deps -r requirements-no-deps.txt

# Thousands of files that no job opens: tests of libraries, and CUDA kernels where there is no CUDA.
site=$(echo "$dest"/lib/python3.*/site-packages)
rm -rf "$site/torch/test"
for package in networkx numpy pyarrow scipy sympy; do
    find "$site/$package" -type d -name tests -prune -exec rm -rf {} +
done
case $("$dest/bin/python" -c 'import torch; print(torch.version.cuda)') in
    None) rm -f "$site"/bitsandbytes/libbitsandbytes_[!c]*.so "$site"/bitsandbytes/libbitsandbytes_cuda*.so ;;
esac
# torchrun before torch 2.12 kills its ranks 30 s after SIGTERM, whatever the job's grace: it gets the variable that later
# ones read (pytorch/pytorch#172596).
if ! grep -q TORCH_ELASTIC_SHUTDOWN_TIMEOUT "$site/torch/distributed/launcher/api.py"; then
    sed -i 's/timeout: int = 30/timeout: int = int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"))/' \
        "$site/torch/distributed/elastic/multiprocessing/api.py"
fi
"$dest/bin/python" -W ignore -m compileall -q -j 0 "$site" >/dev/null || true
"$dest/bin/python" -c 'import torch, transformers; print(f"navarch: torch {torch.__version__}, transformers {transformers.__version__}")'
