# docker build -t edgekd . && docker run --rm edgekd compress --example digits
# The steps are the README's; tests/packaging compares them and runs them.
FROM python:3.11-slim-bookworm AS builder
# PyPI's torch for Linux brings gigabytes of CUDA; this index has the CPU build.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /edgekd
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY targets targets
COPY calibration calibration
COPY edgekd edgekd
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv .venv && .venv/bin/pip install -c constraints.txt .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="edgekd" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /edgekd/.venv /edgekd/.venv
# Any user may write here, so that `--user "$(id -u):$(id -g)"` works with mounted folders.
RUN install -d -m 1777 /work
# No home and no account are needed; libraries that ask for them get these.
ENV PATH=/edgekd/.venv/bin:$PATH \
    HOME=/tmp \
    USER=edgekd
WORKDIR /work
VOLUME ["/work"]
USER 10001:10001
ENTRYPOINT ["edgekd"]
CMD ["--help"]
