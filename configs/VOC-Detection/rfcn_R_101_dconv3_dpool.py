from ..lazy.rfcn import dconv, dpool
from .rfcn_R_101 import dataloader, lr_multiplier, model, optimizer, train

dconv(model, last=3)
dpool(model)
