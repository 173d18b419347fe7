"""What a LazyConfig calls beside the model: data, evaluation and optimizer, without a cfg.

Each does what `Trainer` does for the keys of a YAML of the same names.
"""

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import get_detection_dataset_dicts
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from omegaconf import OmegaConf

from ..config import add_deformable_config
from ..data import register_custom_datasets, screen_proposals, without_difficult
from ..evaluation import build_evaluators
from .optimizer import lr_factors, multiplied_groups


def load_records(
    names,
    *,
    custom=None,
    filter_empty: bool = False,
    min_keypoints: int = 0,
    proposal_files=None,
    drop_difficult: bool = False,
) -> list[dict]:
    """The images of data sets in Detectron2's format, after those of `custom` were registered.

    Args:
        names: of data sets.
        custom: {name: fields} as DATASETS.CUSTOM has them.
        filter_empty, min_keypoints, proposal_files: as of
            `detectron2.data.get_detection_dataset_dicts`.
        drop_difficult: leave out the objects that VOC marks `difficult` (INPUT.DROP_DIFFICULT).

    Raises:
        ValueError, FileNotFoundError: see `register_custom_datasets` and `without_difficult`.
    """
    register_custom_datasets(CfgNode({"DATASETS": {"CUSTOM": _plain(custom or {})}}))
    names, proposal_files = _plain(names), _plain(proposal_files)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = names
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = proposal_files or ()
    cfg.MODEL.LOAD_PROPOSALS = bool(proposal_files)
    screen_proposals(cfg, "TRAIN")
    if not drop_difficult:
        return get_detection_dataset_dicts(
            names,
            filter_empty=filter_empty,
            min_keypoints=min_keypoints,
            proposal_files=proposal_files,
        )
    cfg.MODEL.KEYPOINT_ON = min_keypoints > 0
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = min_keypoints
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    return without_difficult(cfg)


def evaluators(
    dataset_name: str,
    *,
    output_dir: str,
    masks: bool = False,
    proposals: bool = False,
    voc_metric: str = "area",
    sem_seg_resolution: str = "full",
):
    """`d2_deformable.evaluation.build_evaluators` for one data set, registered before.

    Args:
        output_dir: where predictions are written.
        masks: whether the model predicts masks (MODEL.MASK_ON).
        proposals: whether it predicts proposals alone (a ProposalNetwork).
        voc_metric, sem_seg_resolution: TEST.VOC_METRIC, TEST.SEM_SEG_RESOLUTION.
    """
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.MODEL.MASK_ON = masks
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork" if proposals else ""
    cfg.TEST.VOC_METRIC = voc_metric
    cfg.TEST.SEM_SEG_RESOLUTION = sem_seg_resolution
    return build_evaluators(cfg, dataset_name, output_dir)


def parameter_groups(
    model: torch.nn.Module,
    *,
    base_lr: float,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float = 1.0,
    weight_decay_bias: float | None = None,
    lr_multipliers=(),
) -> list[dict]:
    """Detectron2's `get_default_optimizer_params` with SOLVER.LR_MULTIPLIERS applied.

    Args:
        lr_multipliers: [[regex, factor], ...].

    Raises:
        ValueError: see `lr_factors`.
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay_norm=weight_decay_norm,
        bias_lr_factor=bias_lr_factor,
        weight_decay_bias=weight_decay_bias,
    )
    return multiplied_groups(groups, lr_factors(model, _plain(lr_multipliers)))


def clipped_sgd(params, *, clip_type: str, clip_value: float, norm_type: float = 2.0, **kwargs):
    """`torch.optim.SGD` that clips gradients as SOLVER.CLIP_GRADIENTS has it.

    Args:
        params, kwargs: of `torch.optim.SGD`.
        clip_type: "norm" or "value".
        clip_value, norm_type: the limit, and which norm it limits.
    """
    clip = {
        "ENABLED": True,
        "CLIP_TYPE": clip_type,
        "CLIP_VALUE": clip_value,
        "NORM_TYPE": norm_type,
    }
    cfg = CfgNode({"SOLVER": {"CLIP_GRADIENTS": clip}})
    return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(params, **kwargs)


def _plain(value):
    """Lists and dicts instead of omegaconf's."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
