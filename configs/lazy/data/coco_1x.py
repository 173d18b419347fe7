"""COCO 2017 with Detectron2's own recipe, boxes only: ../../COCO-Detection/Base-COCO-1x.yaml."""

from .coco import dataloader

dataloader.train.total_batch_size = 16
dataloader.train.mapper.augmentations[0].update(
    short_edge_length=[640, 672, 704, 736, 768, 800], max_size=1333
)
dataloader.test.mapper.augmentations[0].update(short_edge_length=800, max_size=1333)


def with_masks(dataloader):
    """Also read and evaluate masks (MODEL.MASK_ON)."""
    dataloader.train.mapper.use_instance_mask = True
    dataloader.test.mapper.use_instance_mask = True
    dataloader.evaluator.masks = True
