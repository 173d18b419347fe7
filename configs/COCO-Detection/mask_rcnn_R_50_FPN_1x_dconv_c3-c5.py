"""The LazyConfig twin of the YAML of the same name."""

from d2_deformable.model_zoo import lazy_config

model, optimizer, lr_multiplier, dataloader, train = lazy_config(__file__).values()
