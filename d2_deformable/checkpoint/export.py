"""Export of a training checkpoint for distribution: weights only, in half precision."""

import torch

from ..utils.text import count
from .files import check_target, read_weights, write_weights


def export_checkpoint(source, target) -> None:
    """Write the weights of the checkpoint `source`, without optimizer and iteration, to `target`.

    float32 becomes float16, which loads into a float32 model as float32, rounded to 11 significant
    bits. The running statistics of batch normalisation stay float32, since they are unbounded (a
    variance is the square of an activation), and so do tensors with a value that float16 cannot
    represent. Equal weights give equal bytes. A failure leaves the old `target` in place.

    Args:
        source: a .pth that training wrote, {"model": {name: tensor}, ...}, or any other file that
            `read_weights` reads.
        target: the .pth to write, in the same layout, or a .safetensors.

    Raises:
        ValueError: `source` is not such a file, a weight is not finite, or `target` has another
            suffix.
    """
    check_target(target)
    weights = read_weights(source)
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{source}: {count(len(broken), 'tensor')} not finite, the first: {broken[0]}. The "
            "training diverged; export an earlier checkpoint"
        )
    write_weights({name: _halved(name, value) for name, value in weights.items()}, target)


def _halved(name: str, value: torch.Tensor) -> torch.Tensor:
    if value.dtype != torch.float32 or name.endswith(("running_mean", "running_var")):
        return value
    half = value.half()
    return half if half.isfinite().all() else value
