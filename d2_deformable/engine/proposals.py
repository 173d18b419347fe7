"""Write the proposals of a trained RPN for each data set."""

from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import ProposalNetwork

from ..evaluation import ProposalWriter
from .trainer import Trainer


def dump_proposals(cfg, model, names=(), folder=Path("proposals")) -> list[Path]:
    """Write the proposals of the RPN of `model` to <folder>/<name>_proposals.pkl.

    Images have their test size; MODEL.RPN.POST_NMS_TOPK_TEST proposals per image are kept.

    Args:
        cfg: config of the model, with its data sets registered.
        model: a trained ProposalNetwork, or a detector with an RPN.
        names: data sets; empty for DATASETS.TRAIN and TEST.

    Returns:
        the files, in the order of the names.

    Raises:
        ValueError: the network has no RPN, or a name is not a data set.
    """
    known = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    names = list(dict.fromkeys(names or known))
    for name in names:
        if name not in DatasetCatalog:
            raise ValueError(f"there is no data set {name}; the config has {', '.join(known)}")
    if getattr(model, "proposal_generator", None) is None:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} with "
            f"MODEL.PROPOSAL_GENERATOR.NAME {cfg.MODEL.PROPOSAL_GENERATOR.NAME} has no RPN: use "
            "a config with one, e.g. configs/VOC-Detection/rpn_R_101.yaml"
        )
    network = ProposalNetwork(
        backbone=model.backbone,
        proposal_generator=model.proposal_generator,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    ).to(cfg.MODEL.DEVICE)
    # Evaluation restores this mode afterwards, also in the parts shared with the model.
    network.train(model.training)
    files = [Path(folder) / f"{name}_proposals.pkl" for name in names]
    for name, file in zip(names, files, strict=True):
        loader = Trainer.build_test_loader(cfg, name)
        inference_on_dataset(network, loader, ProposalWriter(name, file))
    return files
