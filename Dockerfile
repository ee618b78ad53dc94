# Eagle Kernels with CUDA 13: the command `eagle` and all that training, data and serving need.
#
#   docker build -t eagle .
#   docker run --rm --gpus all eagle                                     # eagle doctor
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" eagle train tiny --run runs/first --set data.recipe=mix.json
#
# The driver must serve CUDA 13 (branch 580 or later). --ipc host: the loader hands rows to the trainer in shared memory.
ARG CUDA=13.0.1

# nvcc and a C++20 compiler stay behind in this stage.
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python3 -m venv /opt/build \
    && CMAKE_ARGS=-DEAGLE_CUDA=ON /opt/build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvidia/cuda:${CUDA}-base-ubuntu24.04
# g++ and Python's headers: Triton compiles the host's side of each launch, torch.compile its code for the CPU.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 eagle
COPY constraints.txt /opt/constraints.txt
COPY --from=build /wheels /opt/wheels
RUN python3 -m venv /opt/eagle \
    && /opt/eagle/bin/pip install --no-cache-dir -c /opt/constraints.txt --find-links /opt/wheels \
        'eagle-kernels[train,data,serve-http,dali]' \
    && rm -rf /opt/wheels
# video: the GPU's decoders, which DALI calls; without it the driver leaves libnvcuvid.so out of the container.
ENV PATH=/opt/eagle/bin:$PATH \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER 1001
WORKDIR /work
ENTRYPOINT ["eagle"]
CMD ["doctor"]
