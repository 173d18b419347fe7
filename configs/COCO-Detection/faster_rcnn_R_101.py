from ..lazy.data.coco import dataloader
from ..lazy.faster_rcnn import model
from ..lazy.optim import SGD as optimizer
from ..lazy.schedule import multistep
from ..lazy.train import train

model.proposal_generator.anchor_generator.sizes = [[64, 128, 256, 512]]
model.proposal_generator.head.num_anchors = 12
model.roi_heads.num_classes = 80
model.roi_heads.box_predictor.test_topk_per_image = 100
optimizer.lr = 0.004
train.max_iter = 244000
lr_multiplier = multistep(244000, [163000])
