"""SOLVER.AMP on the CPU: bfloat16 instead of Detectron2's float16 with loss scaling, for CUDA."""

import torch
from detectron2.engine import SimpleTrainer


class CPUAMPTrainer(SimpleTrainer):
    """`SimpleTrainer` whose forward passes run under torch.autocast with bfloat16.

    Weights, their gradients and the losses stay float32, so that losses need no scaling.
    """

    def run_step(self):
        model, self.model = self.model, _Autocast(self.model)
        try:
            super().run_step()
        finally:
            self.model = model


class _Autocast:
    """Calls a model under autocast; the backward pass that follows must not run under it."""

    def __init__(self, model):
        self._model = model
        self.training = model.training

    def __call__(self, inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return self._model(inputs)
