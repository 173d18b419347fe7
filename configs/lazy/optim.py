"""SGD with learning-rate multipliers by parameter name, as `Trainer` builds it from SOLVER."""

import torch
from detectron2.config import LazyCall as L

from d2_deformable.engine.optimizer import clipped_sgd, parameter_groups

SGD = L(torch.optim.SGD)(
    params=L(parameter_groups)(  # the training script adds the model
        base_lr="${..lr}",
        weight_decay_norm=0.0,
        weight_decay_bias=0.0,
        lr_multipliers=[],
    ),
    lr=0.002,
    momentum=0.9,
    weight_decay=0.0005,
)


def clip(optimizer, norm: float):
    """Clip the norm of each parameter's gradient (SOLVER.CLIP_GRADIENTS)."""
    optimizer.update(_target_=clipped_sgd, clip_norm=norm)
