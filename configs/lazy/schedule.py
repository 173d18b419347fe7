"""Learning-rate schedules, relative to the optimizer's learning rate."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def multistep(max_iter: int, steps: list[int], warmup_iters=1000, method="constant", factor=0.1):
    """Decay to a tenth at each of `steps` (SOLVER.STEPS), after a warm-up (SOLVER.WARMUP_*)."""
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[0.1**k for k in range(len(steps) + 1)], milestones=steps, num_updates=max_iter
        ),
        warmup_factor=factor,
        warmup_length=warmup_iters / max_iter,
        warmup_method=method,
    )
