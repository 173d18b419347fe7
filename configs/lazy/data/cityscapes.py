"""Cityscapes with fine annotations and random crops:
../../Cityscapes-SemanticSegmentation/Base-Cityscapes.yaml."""

from detectron2.config import LazyCall as L
from detectron2.data.transforms import RandomCrop

from .voc import dataloader

dataloader.train.dataset.update(names=["cityscapes_fine_sem_seg_train"], drop_difficult=False)
dataloader.train.mapper.augmentations[0].update(short_edge_length=[768], max_size=1024)
dataloader.train.mapper.augmentations.insert(
    0, L(RandomCrop)(crop_type="absolute", crop_size=[768, 1024])
)
dataloader.test.dataset.names = ["cityscapes_fine_sem_seg_val"]
dataloader.test.mapper.update(output_size="input")
dataloader.test.mapper.augmentations[0].update(short_edge_length=1024, max_size=2048)
dataloader.evaluator.update(voc_metric="area", sem_seg_resolution="resized_prediction")
