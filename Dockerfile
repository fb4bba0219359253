# A small image for CPUs. The run folders belong to whoever makes the folder outputs:
#   docker build -t noveltylab .
#   mkdir -p outputs
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/outputs:/work/outputs" noveltylab data=digits
# Data sets are read from /data: -v "$PWD/data:/data:ro"
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 \
    NOVELTYLAB_DATA=/data \
    NOVELTYLAB_CACHE=/tmp/noveltylab

# torch without CUDA, in a layer of its own that a change of code leaves alone
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.11" "torchvision>=0.26"

COPY pyproject.toml README.md LICENSE /src/
COPY conf /src/conf
COPY experiments /src/experiments
COPY noveltylab /src/noveltylab
RUN pip install --no-cache-dir /src && rm -rf /src

RUN useradd --create-home noveltylab && mkdir -p /work/outputs /data && chown -R noveltylab /work /data
USER noveltylab
WORKDIR /work
ENTRYPOINT ["noveltylab"]
