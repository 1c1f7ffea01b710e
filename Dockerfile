# One build, one target per binary: docker build --target bulkerapp .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# the caches outlive the layer, so a change builds what changed
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p bulkerapp \
    && install -D target/release/bulkerapp /out/bulkerapp

FROM debian:bookworm-slim AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 65532 bulker \
    && useradd --system --uid 65532 --gid 65532 --create-home bulker \
    # a volume that is mounted here belongs to the user
    && install -d -o 65532 -g 65532 /var/lib/bulker
USER 65532

FROM runtime AS bulkerapp
COPY --from=build /out/bulkerapp /usr/local/bin/bulkerapp
EXPOSE 3042 9091
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["bulkerapp", "healthcheck"]
ENTRYPOINT ["bulkerapp"]
