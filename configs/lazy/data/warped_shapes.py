"""The embedded data set, generated at first use: ../../quick/Base-warped_shapes.yaml."""

from .voc import dataloader

SHAPES = {"FORMAT": "warped_shapes", "IMAGE_SIZE": 160, "SEED": 1}

dataloader.train.dataset.update(
    names=["warped_shapes_train"],
    custom={"warped_shapes_train": {**SHAPES, "SPLIT": "train", "NUM_IMAGES": 800}},
    drop_difficult=False,
)
dataloader.train.mapper.augmentations[0].update(short_edge_length=[160], max_size=160)
dataloader.train.num_workers = 0
dataloader.test.dataset.update(
    names=["warped_shapes_val"],
    custom={"warped_shapes_val": {**SHAPES, "SPLIT": "val", "NUM_IMAGES": 200}},
)
dataloader.test.mapper.augmentations[0].update(short_edge_length=160, max_size=160)
dataloader.test.num_workers = 0
dataloader.evaluator.update(voc_metric="area", max_dets_per_image=100)
