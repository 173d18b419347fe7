"""The schedule of the learning rate: Detectron2's, without steps that are never reached."""

import logging
from itertools import pairwise

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler

logger = logging.getLogger(__name__)


def build_schedule(cfg, optimizer: torch.optim.Optimizer):
    """Build Detectron2's schedule, which fails on a step in SOLVER.STEPS that equals MAX_ITER."""
    solver = cfg.SOLVER
    reached = _reached(solver)
    if "MultiStep" in solver.LR_SCHEDULER_NAME and len(reached) < len(solver.STEPS):
        logger.warning(
            "SOLVER.STEPS is %s: steps at SOLVER.MAX_ITER %d or later are left out",
            tuple(solver.STEPS),
            solver.MAX_ITER,
        )
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.STEPS = reached
    return build_lr_scheduler(cfg, optimizer)


def check_schedule(solver) -> None:
    """Check the keys of SOLVER that together give the schedule, each of them after `check_values`.

    Raises:
        ValueError: they give none; the message names them.
    """
    steps = list(solver.STEPS)
    numbers = all(isinstance(step, int) and step > 0 for step in steps)
    if not numbers or any(a >= b for a, b in pairwise(steps)):
        raise ValueError(
            f"SOLVER.STEPS is {tuple(steps)}; expected whole numbers above 0, in ascending order"
        )
    try:
        learning_rate(solver, 0)
    except Exception as error:  # of Detectron2 and fvcore, without the key
        raise ValueError(
            f"SOLVER: LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME} with WARMUP_METHOD "
            f"{solver.WARMUP_METHOD} and WARMUP_ITERS {solver.WARMUP_ITERS} give no schedule "
            f"({error}); expected values that Detectron2 knows"
        ) from error


def learning_rate(solver, iteration: int) -> float:
    """Learning rate of an iteration, counted from 0, by Detectron2's own schedule."""
    cfg = CfgNode({"SOLVER": solver.clone()})
    cfg.defrost()
    cfg.SOLVER.STEPS = _reached(solver)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=solver.BASE_LR)
    schedule = build_lr_scheduler(cfg, optimizer)
    schedule.last_epoch = iteration
    return schedule.get_lr()[0]


def _reached(solver) -> list[int]:
    return [step for step in solver.STEPS if step < solver.MAX_ITER]
