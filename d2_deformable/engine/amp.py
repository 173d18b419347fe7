"""Mixed precision on the CPU, where Detectron2's AMPTrainer refuses to run."""

import time

import torch
from detectron2.engine import SimpleTrainer


class CPUAMPTrainer(SimpleTrainer):
    """`SimpleTrainer` with forward passes in bfloat16 autocast.

    bfloat16 has the range of float32, so the loss is not scaled.
    """

    def run_step(self):
        assert self.model.training, "the model was changed to evaluation mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.model(data)
        loss_dict = {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses
        self.optimizer.zero_grad()
        sum(loss_dict.values()).backward()
        self._write_metrics(loss_dict, data_time)
        self.optimizer.step()
