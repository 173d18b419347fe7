"""The devices that tests run on: the CPU, and CUDA if there are a GPU and operators for it."""

import torch

from d2_deformable import ops

HAS_GPU = ops.has_cuda() and torch.cuda.is_available()
DEVICES = ["cpu", "cuda"] if HAS_GPU else ["cpu"]
