"""PASCAL VOC 07+12 without difficult objects: ../../VOC-Detection/Base-VOC.yaml."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.transforms import RandomFlip, ResizeShortestEdge
from omegaconf import OmegaConf

from d2_deformable.data import DatasetMapper, load_records
from d2_deformable.evaluation import dataset_evaluators

dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(load_records)(
        names=["voc_2007_trainval", "voc_2012_trainval"], filter_empty=True, drop_difficult=True
    ),
    mapper=L(DatasetMapper)(
        is_train=True,
        augmentations=[
            L(ResizeShortestEdge)(short_edge_length=[600], max_size=1000, sample_style="choice"),
            L(RandomFlip)(),
        ],
        image_format="BGR",
    ),
    total_batch_size=4,
    num_workers=4,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(load_records)(names=["voc_2007_test"]),
    mapper=L(DatasetMapper)(
        is_train=False,
        augmentations=[
            L(ResizeShortestEdge)(short_edge_length=600, max_size=1000, sample_style="choice")
        ],
        image_format="BGR",
    ),
    num_workers=4,
)

dataloader.evaluator = L(dataset_evaluators)(
    dataset_name="${..test.dataset.names[0]}",
    output_dir="${train.output_dir}/inference",
    voc_metric="07",
    max_dets_per_image=300,
)
