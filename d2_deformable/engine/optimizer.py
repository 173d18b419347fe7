"""Detectron2's optimizer with learning rates multiplied by parameter name."""

import math
import re

import torch
from detectron2 import solver
from detectron2.config import get_cfg
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping


def build_optimizer(cfg, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Detectron2's optimizer for `cfg`, with SOLVER.LR_MULTIPLIERS applied.

    Raises:
        ValueError: see `lr_factors`.
    """
    optimizer = solver.build_optimizer(cfg, model)
    multiply_learning_rates(optimizer, model, cfg.SOLVER.LR_MULTIPLIERS)
    return optimizer


def multiply_learning_rates(optimizer: torch.optim.Optimizer, model, multipliers) -> None:
    """Apply SOLVER.LR_MULTIPLIERS to a new optimizer of any kind.

    Call it before the first step, and before a schedule is built on the optimizer.

    Args:
        model: the model whose parameters it optimizes.
        multipliers: [[regex, factor], ...].

    Raises:
        ValueError: see `lr_factors`; or the optimizer lacks a parameter whose learning rate is
            multiplied, e.g. because it was built for a copy of the model.
    """
    factors = lr_factors(model, multipliers)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    names = [n for n, p in model.named_parameters() if factors.get(p, 1.0) != 1 and p not in held]
    if names:
        raise ValueError(
            f"SOLVER.LR_MULTIPLIERS: the optimizer does not hold {names[0]} ({len(names)} such "
            "parameters); build it from this model"
        )
    optimizer.param_groups = multiplied_groups(optimizer.param_groups, factors)


def parameter_groups(
    model: torch.nn.Module,
    *,
    base_lr: float,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float = 1.0,
    weight_decay_bias: float | None = None,
    lr_multipliers=(),
) -> list[dict]:
    """Detectron2's `get_default_optimizer_params` with SOLVER.LR_MULTIPLIERS applied.

    Args:
        lr_multipliers: [[regex, factor], ...].

    Raises:
        ValueError: see `lr_factors`.
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay_norm=weight_decay_norm,
        bias_lr_factor=bias_lr_factor,
        weight_decay_bias=weight_decay_bias,
    )
    return multiplied_groups(groups, lr_factors(model, lr_multipliers))


def clipped_sgd(params, *, clip_norm: float, **kwargs) -> torch.optim.SGD:
    """SGD that clips the gradient of each parameter by its norm first, as SOLVER.CLIP_GRADIENTS
    with CLIP_TYPE norm.

    Args:
        params, kwargs: of `torch.optim.SGD`.
        clip_norm: the largest 2-norm that is left as it is.
    """
    cfg = get_cfg()
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE = True, "norm", clip_norm, 2.0
    return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(params, **kwargs)


def multiplied_groups(param_groups, factors) -> list[dict]:
    """Multiply the "lr" of parameter groups, and regroup parameters by equal settings.

    The two Detectron2 versions group differently, and fewer groups make a step faster.
    """
    groups = {}
    for group in param_groups:
        for p in group["params"]:
            settings = {**group, "lr": group["lr"] * factors.get(p, 1.0)}
            del settings["params"]
            key = repr(sorted(settings.items()))
            groups.setdefault(key, {**settings, "params": []})["params"].append(p)
    return list(groups.values())


def lr_factors(model: torch.nn.Module, multipliers) -> dict[torch.nn.Parameter, float]:
    """For each trainable parameter, multiply the factors whose regex matches its full name.

    Args:
        multipliers: [[regex, factor], ...].

    Raises:
        ValueError: an entry is not [regex, factor], or its regex matches no trainable parameter.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    factors = dict.fromkeys(trainable.values(), 1.0)
    for entry in multipliers:
        try:
            pattern, factor = entry
            regex, factor = re.compile(pattern), float(factor)
            if not 0 <= factor < math.inf:
                raise ValueError("the factor must be finite and not negative")
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(
                f"SOLVER.LR_MULTIPLIERS holds {entry!r} ({error}); expected [regex, factor], "
                "e.g. ['offset_fc', 0.01]"
            ) from error
        matches = [p for name, p in trainable.items() if regex.search(name)]
        if not matches:
            raise ValueError(
                f"SOLVER.LR_MULTIPLIERS: {pattern!r} matches no trainable parameter; there are, "
                f"among others, {', '.join(list(trainable)[-8:])}"
            )
        for p in matches:
            factors[p] *= factor
    return factors
