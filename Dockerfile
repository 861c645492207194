# The control plane as a container; compose.yaml runs it. (The images that jobs run in are made by images/.)
#
#   BASE       any Debian-like image; its Python is used when it is 3.11 or newer, else the distribution's is installed
#   ca-bundle*.pem beside this file, if there is one, is trusted during the build: for networks that re-sign TLS
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ARG PIP_INDEX_URL=
ARG DEBIAN_FRONTEND=noninteractive
RUN python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || (apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv ca-certificates \
        && rm -rf /var/lib/apt/lists/*)

# The pinned dependencies change seldom: their layer comes before the source.
COPY pyproject.toml constraints.txt README.md ca-bundle*.pem /src/
RUN python3 -m venv /opt/navarch-control \
    && mkdir -p /src/jobs /src/images /src/service /src/training \
    && if ls /src/ca-bundle*.pem >/dev/null 2>&1; then export PIP_CERT=$(ls /src/ca-bundle*.pem | head -1); fi \
    && if [ -z "$PIP_INDEX_URL" ]; then unset PIP_INDEX_URL; fi \
    && /opt/navarch-control/bin/pip install -q --no-cache-dir -c /src/constraints.txt /src setuptools wheel \
    && /opt/navarch-control/bin/pip uninstall -q -y navarch

COPY jobs /src/jobs
COPY images /src/images
COPY service /src/service
COPY training /src/training
RUN /opt/navarch-control/bin/pip install -q --no-cache-dir --no-deps --no-build-isolation /src \
    && ln -s /opt/navarch-control/bin/navarch /usr/local/bin/navarch \
    && rm -rf /src

EXPOSE 8470
CMD ["navarch", "up"]
