# docker build -f docker/cuda.Dockerfile -t d2-deformable:cuda .
# CUDA has the major version of torch's own libraries, which pip installs; the driver comes from the host.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 python3-venv && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Architectures are those of setup.py, since no GPU is visible here; fewer compile faster ("9.0").
ARG TORCH_CUDA_ARCH_LIST
ENV PATH=/opt/venv/bin:$PATH FORCE_CUDA=1 D2_SOURCE=pypi \
    PIP_CONSTRAINT=/src/constraints.txt PIP_NO_CACHE_DIR=1
COPY constraints.txt ./
RUN python3 -m venv /opt/venv && pip install pip setuptools wheel && \
    pip install ninja opencv-python-headless torch torchvision
COPY . .
RUN python d2_deformable/cli/install_detectron2.py && pip install --no-build-isolation .

FROM nvidia/cuda:13.0.2-base-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 python3 && rm -rf /var/lib/apt/lists/* && \
    useradd --uid 10001 --create-home user
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
USER 10001
WORKDIR /home/user
ENTRYPOINT ["d2-deformable"]
CMD ["doctor"]
