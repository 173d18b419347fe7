from ..lazy.data.voc import dataloader
from ..lazy.optim import SGD as optimizer
from ..lazy.rfcn import model
from ..lazy.schedule import multistep
from ..lazy.train import train

optimizer.params.lr_multipliers = [["reduction", 3.0]]
train.max_iter = 57900
lr_multiplier = multistep(57900, [40000])
