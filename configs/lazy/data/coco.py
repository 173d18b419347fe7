"""COCO 2017 with the released code's recipe: ../../COCO-Detection/Base-COCO.yaml."""

from .voc import dataloader

dataloader.train.dataset.update(names=["coco_2017_train"], drop_difficult=False)
dataloader.train.total_batch_size = 8
dataloader.test.dataset.names = ["coco_2017_val"]
dataloader.evaluator.update(voc_metric="area", max_dets_per_image=100)
