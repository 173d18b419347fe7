from ..lazy.faster_rcnn_fpn import dconv_stages
from .faster_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

dconv_stages(model, [False, True, True, True])  # res3 to res5
