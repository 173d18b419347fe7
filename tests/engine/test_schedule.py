import warnings

import pytest
import torch
from detectron2.config import get_cfg

from d2_deformable import add_deformable_config
from d2_deformable.engine import Trainer, check_settings


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM = 0, "BN"
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR = 20, 0, 1.0
    return cfg


@pytest.mark.parametrize("steps", [(10, 20), (10, 21), (10, 20, 30), (10,)])
def test_steps_that_are_not_reached_are_left_out(cfg, steps):
    """Detectron2 leaves out those beyond MAX_ITER, and fails on one that equals it."""
    cfg.SOLVER.STEPS = steps
    check_settings(cfg)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimizer
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            schedule.step()
    assert rates == pytest.approx([1.0] * 10 + [0.1] * 10)
    assert tuple(cfg.SOLVER.STEPS) == steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["STEPS", (10, 5)], r"^SOLVER.STEPS is \(10, 5\); expected whole numbers above 0, in asc"),
        (["STEPS", ("a",)], r"^SOLVER.STEPS is \('a',\); expected"),
        (["STEPS", (1.5,)], r"^SOLVER.STEPS is \(1.5,\); expected"),
        (["STEPS", (5, 5)], r"^SOLVER.STEPS is \(5, 5\); expected"),
        (["STEPS", (0,)], r"^SOLVER.STEPS is \(0,\); expected"),
        (["STEPS", (-5, 10)], r"^SOLVER.STEPS is \(-5, 10\); expected"),
        (["MAX_ITER", 0], "^SOLVER.MAX_ITER is 0; expected 1 or more"),
        (["IMS_PER_BATCH", 0], "^SOLVER.IMS_PER_BATCH is 0; expected 1 or more"),
        (["CHECKPOINT_PERIOD", 0], "^SOLVER.CHECKPOINT_PERIOD is 0; expected 1 or more"),
        (["CHECKPOINT_MAX_TO_KEEP", -1], "^SOLVER.CHECKPOINT_MAX_TO_KEEP is -1; expected 0 or"),
        (["BASE_LR", float("nan")], "^SOLVER.BASE_LR is nan; expected a finite number, 0 or more"),
        (["BASE_LR", -1.0], "^SOLVER.BASE_LR is -1.0; expected"),
        (["LR_SCHEDULER_NAME", "Cosine"], "^SOLVER: LR_SCHEDULER_NAME Cosine .* give no schedule"),
        (["WARMUP_ITERS", 5, "WARMUP_METHOD", "sine"], "^SOLVER: .*WARMUP_METHOD sine"),
    ],
)
def test_errors_name_the_key(cfg, changes, message):
    for key, value in zip(changes[::2], changes[1::2]):
        cfg.SOLVER[key] = value
    with pytest.raises(ValueError, match=message):
        check_settings(cfg)
