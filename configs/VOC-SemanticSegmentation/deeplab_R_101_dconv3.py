from ..lazy.deeplab import dconv
from .deeplab_R_101 import dataloader, lr_multiplier, model, optimizer, train

dconv(model, last=3)
