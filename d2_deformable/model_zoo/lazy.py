"""LazyConfig twins: what Detectron2's tools/lazyconfig_train_net.py takes, made from a YAML."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import build_lr_scheduler
from omegaconf import DictConfig

from ..config import read_config
from ..data import DatasetMapper
from ..engine import lazy as engine
from .calls import lazy_tree


def lazy_config(config) -> DictConfig:
    """The LazyConfig of what a YAML describes: every argument of every part can be overridden.

        cfg = lazy_config("my.yaml")
        cfg.model.roi_heads.num_classes = 3
        cfg.model.backbone.deform_num_layers = 6
        model = instantiate(cfg.model)

    What a model's code derives from other keys is a number here, e.g. the channels that a head
    expects from the backbone: overriding one does not change the other. But `num_classes` of a
    head's parts follows the head's.

    Detectron2's tools/lazyconfig_train_net.py trains it as it is. What this package's trainer adds
    is not in that script: OFFSET_HEALTH, TEST.AUG, TEST.BOX_AVERAGE and precise BN.

    Args:
        config: settings, or the path of a YAML; that of a .py stands for the YAML beside it.

    Returns:
        model, optimizer, lr_multiplier, dataloader, train. `dataloader` has `train` and, where
        the YAML has one test set, `test` and `evaluator`.

    Raises:
        ValueError: see `read_config`; or the YAML has what no LazyCall can express.
    """
    cfg = config
    if not isinstance(cfg, CfgNode):
        cfg = read_config(str(Path(config).with_suffix(".yaml")))
    parts = {
        "model": _model(cfg),
        "optimizer": _optimizer(cfg),
        "lr_multiplier": lazy_tree(_multiplier, cfg),
        "dataloader": _dataloader(cfg),
        "train": _train(cfg),
    }
    return DictConfig(parts, flags={"allow_objects": True})


def _model(cfg):
    return lazy_tree(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), cfg)


def _optimizer(cfg):
    c = cfg.SOLVER
    clip = {}
    if c.CLIP_GRADIENTS.ENABLED:
        names = ("CLIP_TYPE", "CLIP_VALUE", "NORM_TYPE")
        clip = {name.lower(): c.CLIP_GRADIENTS[name] for name in names}
    return L(engine.clipped_sgd if clip else torch.optim.SGD)(
        params=L(engine.parameter_groups)(  # Detectron2's script adds the model
            base_lr="${..lr}",
            weight_decay_norm=c.WEIGHT_DECAY_NORM,
            bias_lr_factor=c.BIAS_LR_FACTOR,
            weight_decay_bias=c.WEIGHT_DECAY_BIAS,
            lr_multipliers=c.LR_MULTIPLIERS,
        ),
        lr=c.BASE_LR,
        momentum=c.MOMENTUM,
        nesterov=c.NESTEROV,
        weight_decay=c.WEIGHT_DECAY,
        **clip,
    )


def _multiplier(cfg):
    """What `build_lr_scheduler` multiplies the learning rate by."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return build_lr_scheduler(cfg, optimizer)._multiplier


def _dataloader(cfg):
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN}; a LazyConfig twin knows "
            "TrainingSampler only: set dataloader.train.sampler of the twin of a YAML with that one"
        )
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    parts = {
        "train": L(build_detection_train_loader)(
            dataset=L(engine.load_records)(
                **_records(cfg, "TRAIN"),
                filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
                drop_difficult=cfg.INPUT.DROP_DIFFICULT,
            ),
            mapper=lazy_tree(DatasetMapper, cfg, True),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
    }
    if len(cfg.DATASETS.TEST) == 1:
        parts["test"] = L(build_detection_test_loader)(
            dataset=L(engine.load_records)(**_records(cfg, "TEST")),
            mapper=lazy_tree(DatasetMapper, cfg, False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        parts["evaluator"] = L(engine.evaluators)(
            dataset_name=cfg.DATASETS.TEST[0],
            output_dir="${train.output_dir}/inference",
            masks=cfg.MODEL.MASK_ON,
            proposals=cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork",
            voc_metric=cfg.TEST.VOC_METRIC,
            sem_seg_resolution=cfg.TEST.SEM_SEG_RESOLUTION,
        )
    return parts


def _records(cfg, split):
    names = list(cfg.DATASETS[split])
    custom = {k: dict(v) for k, v in cfg.DATASETS.CUSTOM.items() if k in names}
    files = list(cfg.DATASETS[f"PROPOSAL_FILES_{split}"]) if cfg.MODEL.LOAD_PROPOSALS else None
    return {"names": names, "custom": custom, "proposal_files": files}


def _train(cfg):
    """The keys of Detectron2's configs/common/train.py."""
    return {
        "output_dir": cfg.OUTPUT_DIR,
        "init_checkpoint": cfg.MODEL.WEIGHTS,
        "max_iter": cfg.SOLVER.MAX_ITER,
        "amp": {"enabled": cfg.SOLVER.AMP.ENABLED},
        "ddp": {
            "broadcast_buffers": False,
            "find_unused_parameters": False,
            "fp16_compression": False,
        },
        "checkpointer": {"period": cfg.SOLVER.CHECKPOINT_PERIOD, "max_to_keep": 100},
        "eval_period": cfg.TEST.EVAL_PERIOD,
        "log_period": 20,
        "seed": cfg.SEED,
        "cudnn_benchmark": cfg.CUDNN_BENCHMARK,
        "device": cfg.MODEL.DEVICE,
    }
