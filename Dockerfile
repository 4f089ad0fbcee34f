# The guarded endpoint as a container: docker build -t ttsa-guard .
# TORCH says for which hardware: cpu, or cu126, cu128, ... for NVIDIA cards (docker run --gpus all).
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY ttsa_guard ttsa_guard
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheel

FROM python:${PYTHON}-slim
# A volume takes its owner from the folder that it covers, so the folder has to be there.
RUN useradd --create-home --uid 1000 guard && install -d -o guard -g guard /home/guard/.cache
# Torch is by far the largest layer, so it stands before all that changes more often.
ARG TORCH=cpu
RUN pip install --no-cache-dir 'torch>=2.6,<2.14' --index-url "https://download.pytorch.org/whl/${TORCH}"
ARG EXTRAS=gguf,encoder,telemetry
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir "$(echo /wheel/*.whl)[${EXTRAS}]"
# As a number, since Kubernetes (runAsNonRoot) cannot tell whether a name is root.
USER 1000:1000
WORKDIR /home/guard
# Weights and profiles are kept here: mount a volume.
ENV HF_HOME=/home/guard/.cache/huggingface \
    NEMO_GUARDRAILS_NO_USAGE_STATS=1
EXPOSE 8080
# http.client asks no proxy, whatever the environment names.
HEALTHCHECK --start-period=10m CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8080, timeout=20); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
# The first process of a container ignores SIGTERM until it has a handler; for SIGINT, Python has one from its start.
STOPSIGNAL SIGINT
ENTRYPOINT ["ttsa-guard"]
CMD ["serve", "--help"]
