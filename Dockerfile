# Easel in a container: docker build -t easel . (docs/installation.md tells how to run it)
#
# Debian's own Python, so that a test can run these steps in a root filesystem of Debian's packages. The digest of the base
# is not known here, hence the tag alone; to pin it, write debian:trixie-slim@sha256:… as `docker buildx imagetools inspect
# debian:trixie-slim` prints it.
FROM debian:trixie-slim AS build
# Debian's archive has one version of a package only, so that pinned ones would soon be missing.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-pip \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# requirements-otel.txt adds what sends traces, requirements-cluster.txt what joins several hosts.
ARG REQUIREMENTS=requirements.txt
COPY requirements.txt requirements-otel.txt requirements-cluster.txt /src/
RUN python3 -m venv --without-pip /opt/easel \
    && python3 -m pip --python /opt/easel/bin/python install --no-cache-dir --require-hashes -r "/src/$REQUIREMENTS"
COPY . /src/easel/
RUN python3 -m pip --python /opt/easel/bin/python install --no-cache-dir --no-deps /src/easel

FROM debian:trixie-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && groupadd --gid 10001 easel \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/easel --shell /usr/sbin/nologin easel \
    && install -d -o easel -g easel -m 0750 /var/lib/easel \
    && install -d -o easel -g easel /models \
    && install -d /etc/easel
COPY --from=build /opt/easel /opt/easel
# Settings are /etc/easel/easel.yaml, which need not exist; data is /var/lib/easel; compose.nvidia.yaml and compose.amd.yaml
# mount ComfyUI's models at /models. In a container 127.0.0.1 is the container
# alone: Easel listens on all of its addresses, and therefore does not start without a key. Python writes no bytecode, because
# the root filesystem may be read-only.
ENV PATH=/opt/easel/bin:/usr/local/bin:/usr/bin:/bin \
    XDG_CONFIG_HOME=/etc \
    XDG_DATA_HOME=/var/lib \
    EASEL_HOST=0.0.0.0 \
    EASEL_PORT=8080 \
    PYTHONDONTWRITEBYTECODE=1
# By number, so that Kubernetes sees that it is not root.
USER 10001:10001
WORKDIR /var/lib/easel
VOLUME /var/lib/easel
EXPOSE 8080
# /health needs no key. The first start may prove the catalogue.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python3", "-c", "import http.client, os; server = http.client.HTTPConnection('127.0.0.1', int(os.environ['EASEL_PORT']), timeout=4); server.request('GET', '/health'); raise SystemExit(server.getresponse().status != 200)"]
# Without a shell, so that SIGTERM arrives. `docker stop` waits only 10 s unless it is told more: --time 180.
ENTRYPOINT ["easel"]
CMD ["run"]
