"""Find the first NaN or infinity of a training."""

from collections.abc import Mapping

import torch
from torch import Tensor

ADVICE = (
    "Lower SOLVER.BASE_LR, warm up longer (SOLVER.WARMUP_ITERS) or set "
    "SOLVER.CLIP_GRADIENTS.ENABLED True if it is False"
)


class LastStep:
    """Batch, losses and image files of the latest training step of `model`."""

    def __init__(self, model):
        self.batch, self.losses = [], {}
        model.register_forward_pre_hook(self._keep_batch)
        model.register_forward_hook(self._keep_losses)

    def _keep_batch(self, model, args):
        if model.training:
            (self.batch,), self.losses = args, {}

    def _keep_losses(self, model, args, losses):
        if model.training:
            losses = {"total_loss": losses} if isinstance(losses, Tensor) else losses
            self.losses = {name: loss.detach() for name, loss in losses.items()}

    @property
    def files(self) -> list[str]:
        """Names of the image files; empty for batches that are not Detectron2's."""
        records = [record for record in self.batch if isinstance(record, Mapping)]
        return [str(record["file_name"]) for record in records if "file_name" in record]

    def diagnose(self, model, amp: bool = False, repeat: bool = True) -> str:
        """Say which loss is not finite, which module's output is the first, and on which images.

        Args:
            model: repeats its forward pass on the batch, so this changes running statistics.
            amp: with autocast.
            repeat: False: no forward pass, and so no module.
        """
        bad = [f"{name} is {loss}" for name, loss in self.losses.items() if not is_finite(loss)]
        parts = [bad[0] if bad else "predictions are NaN or infinite"]
        if repeat:
            device = next(model.parameters()).device.type
            with torch.autocast(device, enabled=amp):
                module = first_non_finite(model, self.batch)
            parts.append(module or "no module gives NaN or infinity when the step is repeated")
        if self.files:
            parts.append(f"images {name_some(self.files)}")
        return "; ".join(parts)


class _Found(Exception):
    """Ends a forward pass."""


@torch.no_grad()
def first_non_finite(model, *args) -> str:
    """Describe the first module whose output is not finite in `model(*args)`; "" if there is none.

    A module comes after the modules that it calls.
    """

    def check(name, module, inputs, output):
        if is_finite(output):
            return
        if not all(map(is_finite, module.state_dict().values())):
            reason = ", whose weights are not finite: an earlier update was too large"
        else:
            reason = "" if is_finite(inputs) else ", whose input is not finite"
        raise _Found(f"the first module with such an output is {name or 'the model'}{reason}")

    hooks = [
        module.register_forward_hook(lambda *call, name=name: check(name, *call))
        for name, module in model.named_modules()
    ]
    try:
        model(*args)
    except _Found as found:
        return str(found)
    except FloatingPointError:  # Detectron2's, from a computation outside of modules
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def name_some(names: list[str], most: int = 4) -> str:
    """Join names with commas, and count those after the first few."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_finite(value) -> bool:
    """Return False if a tensor in `value`, of any nesting, holds NaN or infinity."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    return all(map(is_finite, value))
