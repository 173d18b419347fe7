from ..lazy.data.cityscapes import dataloader
from ..lazy.deeplab import model
from ..lazy.optim import SGD as optimizer
from ..lazy.schedule import multistep
from ..lazy.train import train

model.sem_seg_head.num_classes = 19
optimizer.params.lr_multipliers = [["sem_seg_head.*bias", 2.0]]
train.max_iter = 78800
lr_multiplier = multistep(78800, [60000])
