# docker build -f docker/cpu.Dockerfile -t d2-deformable:cpu .
FROM python:3.12.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# PyTorch's index has the same torch as PyPI without the 4 GB of CUDA libraries.
ENV PATH=/opt/venv/bin:$PATH FORCE_CUDA=0 D2_SOURCE=pypi \
    PIP_CONSTRAINT=/src/constraints.txt PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
RUN python -m venv /opt/venv && pip install pip setuptools wheel && \
    pip install ninja opencv-python-headless torch torchvision
COPY . .
RUN python d2_deformable/cli/install_detectron2.py && pip install --no-build-isolation .

FROM python:3.12.12-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* && \
    useradd --uid 10001 --create-home user
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
USER 10001
WORKDIR /home/user
ENTRYPOINT ["d2-deformable"]
CMD ["doctor"]
