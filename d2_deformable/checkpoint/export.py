"""A training's checkpoint as a file to hand on: the weights alone, in half precision."""

import io
import pickle
from pathlib import Path

import torch


def export_checkpoint(source, target) -> None:
    """Write the weights of the checkpoint `source`, without optimizer and iteration, to `target`.

    float32 becomes float16, which loads into a float32 model as float32, rounded to 11 significant
    bits. The running statistics of batch normalisation stay float32, as nothing bounds them (a
    variance is the square of an activation), and so do tensors with a value that float16 cannot
    hold. Equal weights give equal bytes.

    Args:
        source: a .pth that training left, {"model": {name: tensor}, ...}.
        target: the .pth to write, in the same layout.

    Raises:
        ValueError: `source` is no such file, or a weight is not finite.
    """
    try:
        weights = torch.load(source, map_location="cpu", weights_only=True)["model"]
    except (KeyError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{source} is no checkpoint of a training ({type(error).__name__}: {error}); expected "
            'a .pth that holds {"model": weights}, e.g. model_final.pth of its OUTPUT_DIR'
        ) from error
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{source}: {len(broken)} tensors are not finite, the first is {broken[0]}. The "
            "training diverged; export an earlier checkpoint"
        )
    # Through memory, as torch.save writes the name of its file into it; cloned, as it writes the
    # whole storage of a view.
    buffer = io.BytesIO()
    torch.save({"model": {k: _halved(k, v).clone() for k, v in weights.items()}}, buffer)
    Path(target).write_bytes(buffer.getvalue())


def _halved(name: str, value: torch.Tensor) -> torch.Tensor:
    if value.dtype != torch.float32 or name.endswith(("running_mean", "running_var")):
        return value
    half = value.half()
    return half if half.isfinite().all() else value
