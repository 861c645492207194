#!/bin/sh
# install-package.sh: puts the training package into the environment, and its Python first where the base has none.
set -eu
/opt/navarch/bin/pip install -q --no-index --no-deps --no-cache-dir --disable-pip-version-check --root-user-action ignore /navarch/*.whl
for name in python pip; do
    link=/usr/local/bin/$name
    # The base's own conda stays first; the distribution's bare Python does not.
    if [ ! -e "$link" ] || [ "$(readlink "$link")" = "/usr/bin/${name}3" ]; then
        rm -f "$link"
        printf '#!/bin/sh\nexec /opt/navarch/bin/%s "$@"\n' "$name" > "$link"
        chmod 755 "$link"
    fi
done
rm -rf /navarch
