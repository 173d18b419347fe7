from ..lazy.class_aware_rpn import model
from ..lazy.data.coco import dataloader
from ..lazy.optim import SGD as optimizer
from ..lazy.schedule import multistep
from ..lazy.train import train

model.anchor_generator.sizes = [[64, 128, 256, 512]]
model.head.num_anchors = 12
model.update(num_classes=80, max_detections_per_image=100)
optimizer.lr = 0.004
train.max_iter = 244000
lr_multiplier = multistep(244000, [163000])
