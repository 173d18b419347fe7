"""Proposal files are checked before training starts."""

import pickle

import numpy as np
import pytest

from d2_deformable.data import check_proposals
from d2_deformable.engine import Trainer

SHORT = pickle.dumps({"ids": ["000001", "000002"], "boxes": [np.zeros((1, 4))]})


@pytest.fixture
def cfg(register, write_voc, voc_object, root):
    for stem in ("000001", "000002"):
        write_voc(stem, voc_object("dog", (1, 1, 20, 20)))
    cfg = register(dogs="{FORMAT: voc, ROOT: set, CLASSES: [dog]}")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("dogs",)
    cfg.MODEL.LOAD_PROPOSALS = True
    return cfg


@pytest.fixture
def write(root):
    def write(ids, key="ids", **fields):
        content = {key: ids, "boxes": [np.zeros((1, 4))] * len(ids), **fields}
        (root / "file.pkl").write_bytes(pickle.dumps(content))
        return str(root / "file.pkl")

    return write


@pytest.mark.parametrize("key", ["ids", "indexes"])
def test_fits(cfg, write, key):
    file = write(["000002", "another", "000001"], key)  # from a larger set, in any order
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = (file,)
    check_proposals(cfg)
    write(["000001", "000002"], key, dataset="dogs")
    check_proposals(cfg)


def test_of_another_data_set(cfg, write):
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (write(["000001", "x", "y"]),)
    message = "file.pkl, from DATASETS.PROPOSAL_FILES_TRAIN, holds proposals for "
    with pytest.raises(ValueError, match=f"{message}another data set, .*dogs, lacks .*000002"):
        check_proposals(cfg, ("TRAIN",))
    write(["000001", "000002"], dataset="cats")  # the same ids
    with pytest.raises(ValueError, match=f"{message}the data set cats, not for dogs. Give the"):
        check_proposals(cfg, ("TRAIN",))


@pytest.mark.parametrize("box", [(0, 0, 2000, 10), (0, 0, 10, 2000)])
def test_boxes_of_other_images(cfg, write, box):
    """Two data sets may have the same image ids."""
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (write(["000001", "000002"]),)
    check_proposals(cfg, ("TRAIN",))
    write(["000001", "000002"], boxes=[np.zeros((0, 4)), np.array([box], float)])
    with pytest.raises(ValueError, match="beyond the border of image '000002' and 0 more"):
        check_proposals(cfg, ("TRAIN",))


def test_as_many_files_as_data_sets(cfg, write):
    with pytest.raises(ValueError, match="FILES_TRAIN holds 0 files .*, but DATASETS.TRAIN 1 data"):
        check_proposals(cfg)
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (write(["000001", "000002"]),)
    with pytest.raises(ValueError, match="PROPOSAL_FILES_TEST holds 0 files"):
        check_proposals(cfg)
    check_proposals(cfg, ("TRAIN",))


def test_no_proposal_file(cfg, root):
    cfg.DATASETS.PROPOSAL_FILES_TEST = (str(root / "gone.pkl"),)
    with pytest.raises(FileNotFoundError, match="gone.pkl: no such file, from DATASETS.PROPOSAL"):
        check_proposals(cfg, ("TEST",))
    for content in (b"text", pickle.dumps([1]), pickle.dumps({"model": 1}), SHORT):
        (root / "gone.pkl").write_bytes(content)
        with pytest.raises(ValueError, match="gone.pkl, from .*FILES_TEST, is no proposal file"):
            check_proposals(cfg, ("TEST",))


class Hostile:
    """A pickle that touches a file."""

    def __init__(self, sign):
        self.sign = sign

    def __reduce__(self):
        return self.sign.touch, ()


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_a_proposal_file_does_not_run(cfg, root, split):
    sign, file = root / "sign", root / "file.pkl"
    file.write_bytes(pickle.dumps({"ids": ["000001"], "boxes": [Hostile(sign)]}))
    cfg.DATASETS[f"PROPOSAL_FILES_{split}"] = (str(file),)
    with pytest.raises(ValueError, match="file.pkl, from .*, is no proposal file .*it names"):
        check_proposals(cfg, (split,))
    with pytest.raises(ValueError, match="file.pkl is not a data file .* safely: it names"):
        if split == "TRAIN":
            Trainer.build_train_loader(cfg)
        else:
            Trainer.build_test_loader(cfg, "dogs")
    assert not sign.exists()


def test_other_networks_are_not_checked(cfg):
    cfg.MODEL.LOAD_PROPOSALS = False
    check_proposals(cfg)


@pytest.mark.parametrize(
    "boxes",
    [5, [5], [np.zeros((1, 3))], ["text"], [[None] * 5], [[[10**400] * 4]]],
)
def test_boxes_of_another_form(cfg, write, boxes):
    boxes = boxes * 2 if isinstance(boxes, list) else boxes
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (write(["000001", "000002"], boxes=boxes),)
    with pytest.raises(ValueError, match="file.pkl.* (is no proposal file|is not a data file)"):
        check_proposals(cfg, ("TRAIN",))
