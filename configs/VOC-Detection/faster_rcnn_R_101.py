from ..lazy.data.voc import dataloader
from ..lazy.faster_rcnn import model
from ..lazy.optim import SGD as optimizer
from ..lazy.schedule import multistep
from ..lazy.train import train

train.max_iter = 57900
lr_multiplier = multistep(57900, [40000])
