# Two images from one file:
#   docker build --target ray --tag swing-rl:0.1.0 .                  data, training, policy server
#   docker build --target executor --tag swing-rl-executor:0.1.0 .    the executor, without Ray and torch
FROM python:3.11-slim AS source
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/swing
ENV PATH=/opt/swing/bin:$PATH
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY data_pipeline data_pipeline
COPY envs envs
COPY rl rl
COPY serving serving

FROM source AS ray-build
RUN pip install --constraint constraints.txt '.[all]'

FROM source AS executor-build
RUN pip install --constraint constraints.txt .

FROM python:3.11-slim AS runtime
RUN useradd --uid 1000 --no-create-home swing
# The root file system may be read-only; what libraries cache goes to /tmp.
ENV PATH=/opt/swing/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app

FROM runtime AS executor
COPY --from=executor-build /opt/swing /opt/swing
USER 1000
ENTRYPOINT ["swing-live"]
CMD ["run", "--mode", "dry-run"]

FROM runtime AS ray
# KubeRay's readiness probe of Serve workers calls wget.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
COPY --from=ray-build /opt/swing /opt/swing
COPY tune_configs tune_configs
ENV RAY_USAGE_STATS_ENABLED=0
USER 1000
