"""Proposal files: fixed, pre-computed proposals in Detectron2's format.

A pickled dict of "ids", "boxes" (one (R, 4) array per image), "objectness_logits" ((R,) arrays) and
"bbox_mode", see `detectron2.data.load_proposals_into_dataset`. `evaluation/proposals.py` writes
them and adds "dataset", the name of the data set.
"""

from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from ..utils.restricted_pickle import read_pickle
from ..utils.text import one_line


def check_proposals(cfg, splits=("TRAIN", "TEST")) -> None:
    """Reject proposal files that do not fit DATASETS, so that training does not fail halfway.

    Args:
        splits: "TRAIN", "TEST" or both.

    Raises:
        ValueError: the numbers of files and data sets differ, a file is not a proposal file, or it
            belongs to another data set.
        FileNotFoundError: a file does not exist.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    for split in splits:
        names, key = cfg.DATASETS[split], f"DATASETS.PROPOSAL_FILES_{split}"
        files = cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
        if len(files) != len(names):
            raise ValueError(
                f"{key} holds {len(files)} files {tuple(files)}, but DATASETS.{split} "
                f"{len(names)} data sets {tuple(names)}: give one file for each, in this order, as "
                "written by `d2-deformable proposals`"
            )
        for name, file in zip(names, files, strict=True):
            _check_file(Path(file), name, key)


def screen_proposals(cfg, split: str, name: str | None = None) -> None:
    """Apply `screen_proposal_files` to the proposal files of cfg.

    Args:
        split: "TRAIN" or "TEST".
        name: only the file of this data set.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    files = zip(cfg.DATASETS[split], cfg.DATASETS[f"PROPOSAL_FILES_{split}"], strict=False)
    screen_proposal_files(file for dataset, file in files if name in (None, dataset))


def screen_proposal_files(files) -> None:
    """Reject proposal files that hold more than data.

    Detectron2 unpickles them, which would run any code in them.

    Raises:
        FileFormatError: a file is damaged, or holds anything but numbers, strings and arrays.
    """
    for file in files:
        read_pickle(PathManager.get_local_path(file))


def _check_file(file: Path, name: str, key: str) -> None:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file, from {key}. `d2-deformable proposals` writes it for {name}"
        )
    try:
        content = read_pickle(file)
        ids = content["ids"] if "ids" in content else content["indexes"]  # Detectron 1's key
        boxes = [np.asarray(one, float).reshape(-1, 4) for one in content["boxes"]]
        boxes = {str(i): one for i, one in zip(ids, boxes, strict=True)}
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}, from {key}, is no proposal file ({type(error).__name__}: {one_line(error)}): "
            "expected what `d2-deformable proposals` writes"
        ) from error
    records = {str(r["image_id"]): r for r in DatasetCatalog.get(name)}
    missing = [i for i in records if i not in boxes]
    beyond = [i for i, r in records.items() if i in boxes and _reach_beyond(boxes[i], r)]
    other = content.get("dataset", name)
    if other != name or missing or beyond:
        signs = [("lacks image", missing), ("has boxes beyond the border of image", beyond)]
        found = "".join(f", {sign} {i[0]!r} and {len(i) - 1} more" for sign, i in signs if i)
        whose = f"the data set {other}" if other != name else "another data set"
        raise ValueError(
            f"{file}, from {key}, holds proposals for {whose}, not for {name}{found}. Give the "
            f"file of {name}; `d2-deformable proposals` writes one"
        )


def _reach_beyond(boxes: np.ndarray, record: dict) -> bool:
    """Check whether any box (R, 4), (x0, y0, x1, y1), ends more than a pixel beyond its image."""
    if "width" not in record or not len(boxes):
        return False
    limits = (record["width"] + 1, record["height"] + 1)
    return bool((boxes[:, 2:4] > limits).any())
