# The container in which the documentation fine-tunes. It has been linted, not built: no container runtime was at hand.
#
#   docker build -t cogvlm_cuda:v2.0 .
#   docker run -i -t --gpus "device=all" --shm-size="10gb" -v /data/sat_home/:/.sat_models \
#       -v ./checkpoints/:/checkpoints/ -v ./examples/:/test/ cogvlm_cuda:v2.0 "/usr/bin/bash"
#   bash scripts/finetune_official.sh 8 1 /.sat_models cogvlm-base-490 base 2088 10 /test 40 20 20 "/checkpoints" 8 expert
#
# The "devel" image has nvcc: DeepSpeed compiles its fused kernels on first use. TORCH_INDEX and the image must be of
# the same CUDA release.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04

ARG TORCH_INDEX=https://download.pytorch.org/whl/cu128

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SAT_HOME=/.sat_models

# Python 3.12, with the headers and the compiler that DeepSpeed's extensions need; versions are those of the release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ ninja-build python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace

# Packages before sources, so that a change of the sources does not install them again.
COPY requirements.txt ./
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.11,<2.15" \
    && pip install --no-cache-dir -r requirements.txt

COPY LICENSE README.md setup.py pyproject.toml ./
COPY configs/ configs/
COPY examples/ examples/
COPY mixins/ mixins/
COPY sat_models/ sat_models/
COPY scripts/ scripts/
RUN pip install --no-cache-dir --no-deps -e . \
    && mkdir -p /.sat_models /checkpoints /test

CMD ["/usr/bin/bash"]
