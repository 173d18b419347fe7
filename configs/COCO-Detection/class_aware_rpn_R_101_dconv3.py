from ..lazy.class_aware_rpn import dconv
from .class_aware_rpn_R_101 import dataloader, lr_multiplier, model, optimizer, train

dconv(model, last=3)
