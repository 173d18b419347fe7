from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import CosineParamScheduler

from ..quick.warped_shapes_rfcn_R_18_dconv3_dpool import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataloader.train.dataset.custom.warped_shapes_train.NUM_IMAGES = 10000
train.update(max_iter=10000, eval_period=2000)
train.checkpointer.period = 1000
lr_multiplier.scheduler = L(CosineParamScheduler)(start_value=1, end_value=0)
lr_multiplier.warmup_length = 100 / train.max_iter
