# A server with what camserve's archives need; archives are mounted at /models. docs/operate says how to run it.
#
#   docker build -t camserve --target asgi .                            our own server, without TorchServe and Java
#   docker build -t camserve .                                          for GPU and CPU
#   docker build -t camserve:ray --target ray .                         for the nodes of a Ray cluster: deploy/ray
#   deploy/lock.py --torch-index URL
#   docker build -t camserve:cpu --build-arg TORCH_INDEX=URL .          for CPU: with PyTorch's index of CPU builds, far smaller

FROM debian:bookworm-slim AS base
# Debian's fixes are wanted, so its packages are not pinned.
# hadolint ignore=DL3008
RUN apt-get update -q \
    && apt-get install -yq --no-install-recommends python3 tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 camserve \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin camserve

FROM base AS torch
# hadolint ignore=DL3008
RUN apt-get update -q && apt-get install -yq --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_DEPS=1 PIP_REQUIRE_HASHES=1 PIP_ONLY_BINARY=:all:
WORKDIR /build
# First torch and CUDA's libraries, 4.5 GB: another pin of anything else takes them from the cache.
COPY deploy/requirements-torch*.txt ./
# Where torch comes from: the index that pip knows, or this one, for which `deploy/lock.py --torch-index URL` wrote the hashes.
ARG TORCH_INDEX
RUN if [ -z "$TORCH_INDEX" ]; then /opt/venv/bin/pip install -q -r requirements-torch.txt; \
    elif [ -f requirements-torch-index.txt ]; then /opt/venv/bin/pip install -q -i "$TORCH_INDEX" -r requirements-torch-index.txt; \
    else echo "error: run deploy/lock.py --torch-index $TORCH_INDEX first, for its hashes" >&2; exit 1; fi

FROM torch AS build
COPY deploy/requirements.txt ./
RUN /opt/venv/bin/pip install -q -r requirements.txt && PIP_REQUIRE_HASHES=0 /opt/venv/bin/pip uninstall -qy pip

FROM torch AS build-asgi
COPY deploy/requirements-asgi.txt ./
RUN /opt/venv/bin/pip install -q -r requirements-asgi.txt && PIP_REQUIRE_HASHES=0 /opt/venv/bin/pip uninstall -qy pip

FROM torch AS build-ray
COPY deploy/requirements-ray.txt ./
RUN /opt/venv/bin/pip install -q -r requirements-ray.txt && PIP_REQUIRE_HASHES=0 /opt/venv/bin/pip uninstall -qy pip

FROM base AS code
COPY LICENSE /opt/camserve/
COPY scripts /opt/camserve/scripts
COPY deploy /opt/camserve/deploy
COPY handlers /opt/camserve/handlers
# Readable for whatever user runs it, also when the checkout is not.
RUN python3 -m compileall -q /opt/camserve/handlers && chmod -R a+rX /opt/camserve

FROM base AS run
# Temporary files (unpacked archives, sockets, the token) are all that is written, and they go to /tmp: the rest may be
# read-only. Whatever user runs it, its home is there.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
USER 10001:10001
EXPOSE 8080 8082
# Ready: every worker has loaded its model. /ping says 200 before.
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s --retries=3 CMD ["python3", "/opt/camserve/deploy/ready.py"]
# SIGTERM lets requests finish, for as long as --drain says (30 s): stop with `docker stop --time 45`.
STOPSIGNAL SIGTERM

FROM run AS asgi
COPY --from=build-asgi /opt/venv /opt/venv
COPY --from=code /opt/camserve /opt/camserve
# Without tokens, which this server does not have: something in front authenticates.
ENTRYPOINT ["tini", "--", "python3", "/opt/camserve/scripts/serve.py", "--host", "asgi", "--model-store", "/models", \
    "--log-format", "json", "--config", "/opt/camserve/deploy/torchserve/cluster.properties"]

FROM run AS ray
COPY --from=build-ray /opt/venv /opt/venv
COPY --from=code /opt/camserve /opt/camserve
# KubeRay starts `ray start` here, which imports camserve.
ENV PYTHONPATH=/opt/camserve/handlers RAY_USAGE_STATS_ENABLED=0
HEALTHCHECK NONE
ENTRYPOINT []
CMD ["python3", "/opt/camserve/scripts/serve.py", "--host", "ray", "--model-store", "/models", \
    "--log-format", "json", "--config", "/opt/camserve/deploy/torchserve/cluster.properties"]

FROM run AS torchserve
COPY --from=build /opt/venv /opt/venv
COPY --from=code /opt/camserve /opt/camserve
ENTRYPOINT ["tini", "--", "python3", "/opt/camserve/scripts/serve.py", "--model-store", "/models", "--log-format", "json", \
    "--config", "/opt/camserve/deploy/torchserve/container.properties"]
