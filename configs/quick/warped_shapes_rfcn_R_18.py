from ..lazy.data.warped_shapes import dataloader
from ..lazy.optim import SGD as optimizer
from ..lazy.optim import clip
from ..lazy.rfcn_R_18 import model
from ..lazy.schedule import multistep
from ..lazy.train import train

model.roi_heads.num_classes = 8
optimizer.update(lr=0.02, weight_decay=0.0001)
optimizer.params.lr_multipliers = [["score_maps", 10.0]]
clip(optimizer, norm=10.0)
train.update(init_checkpoint="", max_iter=1600, seed=1)
train.checkpointer.period = 200
lr_multiplier = multistep(1600, [1300, 1500], warmup_iters=100, method="linear", factor=0.001)
