from ..lazy.faster_rcnn import dconv, dpool
from .faster_rcnn_R_101 import dataloader, lr_multiplier, model, optimizer, train

dconv(model, last=3)
dpool(model)
optimizer.params.lr_multipliers = [["box_pooler.*offset_fc", 0.01]]
