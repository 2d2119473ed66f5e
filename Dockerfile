# The engine, its monitor, the CNI plugins and runc: make image.
#
# Both bases can come from any registry. BASE_IMAGE=scratch gives the programs
# alone, BASE_IMAGE=node (the default) a system with nft, which the default
# network needs. Pass digests where the same image must come out twice:
# everything else here is pinned.
ARG BUILD_IMAGE=docker.io/library/golang:1.26.8-trixie
ARG NODE_IMAGE=docker.io/library/debian:trixie-slim
ARG BASE_IMAGE=node

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY hack/setup.sh hack/
RUN hack/setup.sh build
COPY . .
ARG VERSION=unknown
ARG GOPROXY
ARG GOSUMDB
ARG GOFLAGS
RUN make build runc VERSION="${VERSION}"
RUN install -D -t /out/usr/local/bin bin/cri-engine bin/cri-engine-monitor bin/runc && \
    install -D -t /out/usr/local/libexec/cri-engine/cni bin/cni/* && \
    install -D -m 0644 -t /out/usr/local/share/doc/cri-engine LICENSE && \
    install -D -m 0644 -t /out/etc/ssl/certs /etc/ssl/certs/ca-certificates.crt

FROM ${NODE_IMAGE} AS node
RUN command -v nft || { \
        apt-get update && \
        apt-get install -y --no-install-recommends nftables && \
        rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/*; }

FROM ${BASE_IMAGE}
COPY --from=build /out /
ENTRYPOINT ["/usr/local/bin/cri-engine"]
CMD ["serve"]
