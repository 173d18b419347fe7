"""Training loops that stop before a step that went wrong reaches the weights or a checkpoint."""

import re

import detectron2.utils.comm as comm
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch.nn.utils import get_total_norm

from ..compat import require_private
from .amp import CPUAMPTrainer
from .launch import highest_of_processes
from .non_finite import LastStep, is_finite, name_some
from .offset_health import deformable_layers

# The 2-norm of all weights, frozen ones included, relative to that at the start, above which a
# training has diverged. From random weights to the model zoo's checkpoint it is 1.05.
MAX_GROWTH = 10
# fairseq's limit of the loss scale: it starts at 65536 and halves with every overflow.
MIN_SCALE = 1e-4


class Diverged(FloatingPointError):
    """A step of a training went wrong; the message says what, in words that follow a colon."""


class Guarded:
    """Mixin for Detectron2's training loops, for one process or all processes of a training.

    It stops before an update by a loss or a gradient that is NaN or infinite, and after an update
    that leaves weights so or makes them grow without bounds. Scalars of every step:

    grad_norm: 2-norm of the gradients of all parameters, averaged over the processes, before
        SOLVER.CLIP_GRADIENTS.
    grad_norm_offsets: that of the parameters that predict offsets, if there are any.

    Attributes:
        last_step: `LastStep` of this process.

    Raises:
        Diverged: from `run_step`, in every process with the same message, unless the forward pass
            itself fails in one of them.
    """

    amp = False

    def __init__(self, model, data_loader, optimizer):
        super().__init__(model, data_loader, optimizer)
        require_private(self, "_write_metrics")
        self.last_step = LastStep(model)
        self._network = getattr(model, "module", model)
        self._parameters = {
            name: p for name, p in self._network.named_parameters() if p.requires_grad
        }
        kinds = {layer.offset_parameters for layer in deformable_layers(self._network).values()}
        self._offsets = [
            p for n, p in self._parameters.items() if any(re.search(kind, n) for kind in kinds)
        ]
        self._norm_at_start = None
        self._normalizers = ()  # of all processes

    def run_step(self):
        weights = list(self._network.parameters())
        if self._norm_at_start is None:
            self._norm_at_start = norm(weights)
        try:
            super().run_step()
        except Diverged:
            raise
        except FloatingPointError as error:  # Detectron2's RPN, of predictions
            raise Diverged(self._diagnose()) from error
        now, limit = norm(weights), MAX_GROWTH * self._norm_at_start
        if not now < float("inf"):
            raise Diverged(f"the update made {self._describe(self._parameters)} NaN or infinite")
        if now > limit > 0:
            raise Diverged(
                f"the update made the weights {now / self._norm_at_start:.3g} times as large as "
                f"at the start of the training (2-norm); expected less than {MAX_GROWTH} times"
            )
        # The running average of RetinaNet and FCOS, which is no buffer. The main process saves it.
        if hasattr(self._network, "loss_normalizer"):
            self._normalizers = tuple(comm.all_gather(float(self._network.loss_normalizer)))

    # Detectron2 calls it between the backward pass and the update.
    def _write_metrics(self, loss_dict, *args, **kwargs):
        self._check_losses(loss_dict)
        super()._write_metrics(loss_dict, *args, **kwargs)
        self.check_gradients()

    def _check_losses(self, losses) -> None:
        bad = not is_finite(losses)
        if not highest_of_processes(bad, self._network):
            return
        found = self._diagnose() if bad else ""
        raise Diverged(next(filter(None, comm.all_gather(found))))

    def _diagnose(self) -> str:
        # With synchronised batch norms, a forward pass in one process would wait for the others.
        synced = any("SyncBatchNorm" in type(m).__name__ for m in self._network.modules())
        repeat = not synced or comm.get_world_size() == 1
        return self.last_step.diagnose(self._network, self.amp, repeat)

    def check_gradients(self) -> None:
        size = norm(_gradients(self._parameters.values()))
        if size < float("inf"):
            self._report("grad_norm", size)
            if self._offsets:
                self._report("grad_norm_offsets", norm(_gradients(self._offsets)))
        else:
            self.refuse_gradients()

    def refuse_gradients(self) -> None:
        gradients = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        files = [file for files in comm.all_gather(self.last_step.files) for file in files]
        raise Diverged(
            "losses are finite, but the backward pass gives NaN or infinite gradients of "
            f"{self._describe(gradients)}; images {name_some(files)}"
        )

    def _report(self, name: str, value: float, **options) -> None:
        get_event_storage().put_scalar(name, value, **options)

    def _describe(self, tensors: dict) -> str:
        """Name the tensor nearest to the loss that is not finite, and count the others."""
        bad = [name for name, tensor in tensors.items() if not norm([tensor]) < float("inf")]
        return f"{bad[-1]} and {len(bad) - 1} other parameters" if bad[1:] else "".join(bad)

    def state_dict(self):
        return {
            **super().state_dict(),
            "norm_at_start": self._norm_at_start,
            "loss_normalizers": self._normalizers,
        }

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if isinstance(norm_at_start := state_dict.get("norm_at_start"), float):
            self._norm_at_start = norm_at_start
        normalizers = state_dict.get("loss_normalizers")
        if isinstance(normalizers, tuple) and normalizers:
            self._network.loss_normalizer = float(normalizers[comm.get_rank() % len(normalizers)])


class GuardedTrainer(Guarded, SimpleTrainer):
    """In float32."""


class GuardedCPUAMPTrainer(Guarded, CPUAMPTrainer):
    """In bfloat16 on the CPU."""

    amp = True


class GuardedAMPTrainer(Guarded, AMPTrainer):
    """In float16 on CUDA, with a loss scale, the scalar "amp_scale".

    A step whose gradients overflow is left out and halves the scale, as in PyTorch; if that goes
    on, the training has diverged.
    """

    amp = True

    def check_gradients(self):
        # The optimizer clips gradients, so it needs them without the scale, too.
        self.grad_scaler.unscale_(self.optimizer)
        self._report("amp_scale", self.grad_scaler.get_scale(), smoothing_hint=False)
        super().check_gradients()

    def refuse_gradients(self):
        if self.grad_scaler.get_scale() < MIN_SCALE:
            super().refuse_gradients()


def norm(tensors) -> float:
    """2-norm of all tensors together."""
    with torch.no_grad():
        return float(get_total_norm(tensors))


def _gradients(parameters) -> list[torch.Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
