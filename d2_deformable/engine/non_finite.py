"""Find the first NaN or infinity of a training."""

from collections.abc import Mapping

import torch
from torch import Tensor

ADVICE = (
    "Lower SOLVER.BASE_LR, warm up longer (SOLVER.WARMUP_ITERS) or clip gradients "
    "(SOLVER.CLIP_GRADIENTS.ENABLED True)"
)


class LastStep:
    """Batch and losses of the latest training step of `model`."""

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

    def diagnose(self, model, amp: bool = False) -> str:
        """Say which loss is not finite, and which module's output is the first that is not.

        Args:
            model: repeats its forward pass on the batch, so this changes running statistics.
            amp: with autocast.
        """
        bad = [f"{name} is {loss}" for name, loss in self.losses.items() if not is_finite(loss)]
        terms = f"{bad[0]}" if bad else "predictions are NaN or infinite"
        device = next(model.parameters()).device.type
        with torch.autocast(device, enabled=amp):
            module = first_non_finite(model, self.batch)
        return f"{terms}; {module or 'no module gives NaN or infinity when the step is repeated'}"


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


def is_finite(value) -> bool:
    """Return False if a tensor in `value`, of any nesting, holds NaN or infinity."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    return all(map(is_finite, value))
