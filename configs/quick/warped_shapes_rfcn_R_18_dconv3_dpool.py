from ..lazy.rfcn_R_18 import dconv, dpool
from .warped_shapes_rfcn_R_18 import dataloader, lr_multiplier, model, optimizer, train

dconv(model, last=3)
dpool(model)
optimizer.params.lr_multipliers = [["score_maps", 10.0], ["conv_offset", 0.1]]
