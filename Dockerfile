# The guarded endpoint as a container: docker build -t ttsa-guard .
# TORCH says for which hardware: cpu, or cu126, cu128, ... for NVIDIA cards (docker run --gpus all).
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY ttsa_guard ttsa_guard
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheel

FROM python:${PYTHON}-slim
ARG TORCH=cpu
ARG EXTRAS=gguf,encoder,telemetry
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir 'torch>=2.6,<2.14' --index-url "https://download.pytorch.org/whl/${TORCH}" \
    && pip install --no-cache-dir "$(echo /wheel/*.whl)[${EXTRAS}]" \
    && useradd --create-home guard
USER guard
WORKDIR /home/guard
# Weights and profiles are kept here: mount a volume.
ENV HF_HOME=/home/guard/.cache/huggingface \
    NEMO_GUARDRAILS_NO_USAGE_STATS=1
EXPOSE 8080
HEALTHCHECK --start-period=10m CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/healthz')"]
ENTRYPOINT ["ttsa-guard"]
CMD ["serve", "--help"]
