"""PASCAL VOC 2012 with the masks of SBD: ../../VOC-SemanticSegmentation/Base-VOC.yaml."""

from .voc import dataloader

# fmt: off
CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]
# fmt: on
VOC2012 = {"FORMAT": "mask", "ROOT": "VOC2012", "IMAGES": "JPEGImages", "CLASSES": CLASSES}

dataloader.train.dataset.update(
    names=["voc_2012_aug_sem_seg_train"],
    custom={
        "voc_2012_aug_sem_seg_train": {
            **VOC2012,
            "MASKS": "SegmentationClassAug",
            "SPLIT": "ImageSets/Segmentation/train_aug.txt",
        }
    },
    drop_difficult=False,
)
dataloader.train.mapper.augmentations[0].update(short_edge_length=[360], max_size=600)
dataloader.test.dataset.update(
    names=["voc_2012_sem_seg_val"],
    custom={
        "voc_2012_sem_seg_val": {
            **VOC2012,
            "MASKS": "SegmentationClass",
            "SPLIT": "ImageSets/Segmentation/val.txt",
        }
    },
)
dataloader.test.mapper.update(output_size="input")
dataloader.test.mapper.augmentations[0].update(short_edge_length=360, max_size=600)
dataloader.evaluator.update(voc_metric="area", sem_seg_resolution="resized_ground_truth")
