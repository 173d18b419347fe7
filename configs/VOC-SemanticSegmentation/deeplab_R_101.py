from ..lazy.data.voc_aug import dataloader
from ..lazy.deeplab import model
from ..lazy.optim import SGD as optimizer
from ..lazy.schedule import multistep
from ..lazy.train import train

optimizer.params.lr_multipliers = [["sem_seg_head.*bias", 2.0]]
train.max_iter = 63500
lr_multiplier = multistep(63500, [42300], warmup_iters=0, method="linear", factor=0.001)
