"""The settings that Detectron2's tools/lazyconfig_train_net.py reads besides model, data and
optimizer."""

from detectron2 import model_zoo

train = model_zoo.get_config("common/train.py").train
train.update(init_checkpoint="detectron2://ImageNetPretrained/MSRA/R-101.pkl", eval_period=0)
