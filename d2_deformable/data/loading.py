"""Images of data sets for a data loader, from explicit arguments instead of a config."""

from detectron2.data import get_detection_dataset_dicts
from omegaconf import OmegaConf

from .custom import register_datasets
from .difficult import load_easy, training_filters
from .proposals import screen_proposal_files


def load_records(
    names,
    *,
    custom=None,
    filter_empty: bool = False,
    min_keypoints: int = 0,
    proposal_files=None,
    drop_difficult: bool = False,
) -> list[dict]:
    """Load the images of data sets in Detectron2's format; register those of `custom` first.

    Args:
        names: of data sets.
        custom: {name: fields} as DATASETS.CUSTOM has them; omegaconf's containers are accepted.
        filter_empty, min_keypoints, proposal_files: as of
            `detectron2.data.get_detection_dataset_dicts`.
        drop_difficult: leave out the objects that VOC marks `difficult` (INPUT.DROP_DIFFICULT).

    Raises:
        ValueError, FileNotFoundError: see `register_datasets` and `load_easy`.
    """
    names, custom, proposal_files = map(_plain, (names, custom, proposal_files))
    register_datasets(custom or {})
    screen_proposal_files(proposal_files or ())
    load = load_easy if drop_difficult else get_detection_dataset_dicts
    return load(
        names,
        filter_empty=filter_empty,
        min_keypoints=min_keypoints,
        proposal_files=proposal_files,
    )


def load_training_records(cfg) -> list[dict]:
    """Load DATASETS.TRAIN as Detectron2's train loader does, and with INPUT.DROP_DIFFICULT."""
    load = load_easy if cfg.INPUT.DROP_DIFFICULT else get_detection_dataset_dicts
    return load(cfg.DATASETS.TRAIN, **training_filters(cfg))


def _plain(value):
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
