from ..lazy.data.coco_1x import dataloader
from ..lazy.faster_rcnn_fpn import model
from ..lazy.optim import SGD as optimizer
from ..lazy.schedule import multistep
from ..lazy.train import train

optimizer.update(lr=0.02, weight_decay=0.0001)
optimizer.params.weight_decay_bias = 0.0001
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 90000
lr_multiplier = multistep(90000, [60000, 80000], method="linear", factor=0.001)
