"""Results in float64, and the errors of an implementation against them."""

from functools import lru_cache

import torch

from .implementations import Implementation

# Largest error of a result, relative to its largest number. A result sums up to 4608 products, and
# CUDA rounds their factors to half precision if the feature maps are.
TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 8e-2,
}


@lru_cache(maxsize=1)  # the modes of a case share it
def exact(case, std, device, dtype, backward: bool) -> tuple[dict, dict]:
    """Draw the tensors of a case, and compute the float64 results for the same numbers."""
    tensors = case.draw(std, device, dtype)
    unchecked = torch.ones(len(tensors["grad"]), dtype=torch.bool, device=device)
    unchecked[case.checked()] = False
    tensors["grad"][unchecked] = 0
    reference = Implementation(case.reference, case.leaves())
    doubles = {name: tensor.double() for name, tensor in tensors.items()}
    return tensors, reference.results(doubles, backward)


def error(case, results: dict, expected: dict) -> float:
    """Largest difference relative to its tensor's largest number; NaN if a value is not finite."""
    worst = 0.0
    for name, right in expected.items():
        result = results[name]
        if not result.isfinite().all():
            return float("nan")
        if name == "output":
            result, right = result[case.checked()], right[case.checked()]
        difference = (result.double() - right).abs().max() / right.abs().max()
        worst = max(worst, float(f"{difference.item():.3g}"))
    return worst
