# Two images of one gateway:
#
#   docker build --target process -t preview-gateway:process .   runs dev servers itself (Node.js)
#   docker build --target gateway -t preview-gateway .           leaves them to something else
#
# Their data plane is compiled (hatch_build.py); the compiler stays in the stage that builds it. Every
# package is installed by its hash; nothing is fetched that a lock file does not name, but the base
# image, the compiler and tini.

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# The environment changes with the lock file, the wheel with every commit: in this order the layers
# of the former are kept. What the gateway runs on is also where it is compiled: mypyc goes by the
# types of what a module imports.
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /opt/gateway \
    && /opt/gateway/bin/pip install --require-hashes -r requirements.lock \
    && pip install --require-hashes -r requirements.lock -r requirements-build.lock
COPY LICENSE README.md pyproject.toml hatch_build.py ./
COPY gateway gateway
# Byte code is made here, because the running container can write nothing beside the code.
RUN HATCH_BUILD_HOOKS_ENABLE=1 pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/gateway/bin/pip install --no-deps /wheels/*.whl \
    && /opt/gateway/bin/python -m compileall -q -j 0 /opt/gateway/lib

FROM build AS build-process
COPY requirements-node.lock ./
RUN /opt/gateway/bin/pip install --require-hashes -r requirements-node.lock

FROM python:${PYTHON_VERSION}-slim AS base
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="preview-gateway" \
      org.opencontainers.image.description="A multi-pod preview gateway: dev servers at stable URLs, from any replica, with working HMR" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# tini reaps what dev servers leave behind: as process 1 the gateway would inherit their orphans.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /data
ENV PATH=/opt/gateway/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_PORT=8080 \
    GATEWAY_ADMIN_PORT=9090 \
    GATEWAY_DATA_DIR=/data
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
VOLUME /data
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"GATEWAY_ADMIN_PORT\"]}/livez', timeout=2)"]
ENTRYPOINT ["tini", "--", "preview-gateway"]
CMD ["serve"]

FROM base AS process
COPY --from=build-process /opt/gateway /opt/gateway

FROM base AS gateway
ENV GATEWAY_SPAWNER=none
COPY --from=build /opt/gateway /opt/gateway
