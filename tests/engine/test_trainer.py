import pytest
from detectron2.config import get_cfg

from d2_deformable.engine.checkpoint_files import checkpoint_period


@pytest.mark.parametrize(
    "period, iterations, expected",
    [
        (5000, 1600, 320),
        (5000, 60, 100),
        (5000, 5000, 5000),
        (10000, 1600, 10000),  # somebody's choice
        (50, 1600, 50),
    ],
)
def test_only_the_default_checkpoint_period_follows_the_run(period, iterations, expected):
    cfg = get_cfg()
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_ITER = period, iterations
    assert checkpoint_period(cfg) == expected
