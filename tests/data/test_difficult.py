"""INPUT.DROP_DIFFICULT: training skips difficult objects, evaluation keeps them."""

import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc

from d2_deformable.data import load_flagged, without_difficult
from d2_deformable.engine import Trainer

HARD, EASY = "<difficult>1</difficult>", "<difficult>0</difficult>"


@pytest.fixture
def voc(write_voc, voc_object, root):
    """Two images: one with an easy and a difficult object, one with a difficult object only."""
    write_voc(
        "000001", voc_object("cat", (1, 1, 20, 20), EASY) + voc_object("dog", (5, 5, 9, 9), HARD)
    )
    write_voc("000002", voc_object("dog", (1, 1, 20, 20), HARD))
    (root / "set/ImageSets/Main/train.txt").write_text("000001\n000002\n")


@pytest.fixture(params=["ours", "detectron2"])
def cfg(request, voc, register, root):
    name = f"difficult_{request.param}"
    cfg = register(difficult_ours="{FORMAT: voc, ROOT: set, SPLIT: train, CLASSES: [cat, dog]}")
    if request.param == "detectron2":
        register_pascal_voc(name, f"{root}/./set", "train", 2007, ["cat", "dog"])
        MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    cfg.DATASETS.TRAIN = (name,)
    yield cfg
    if request.param == "detectron2":
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_training_drops_them_and_images_without_others(cfg, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("d2_deformable"), "propagate", True)
    caplog.set_level(logging.INFO)
    (image,) = without_difficult(cfg)
    assert image["image_id"] == "000001"
    assert [a["category_id"] for a in image["annotations"]] == [0]
    assert "INPUT.DROP_DIFFICULT: left out 2 objects marked difficult." in caplog.messages
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert [len(x["annotations"]) for x in without_difficult(cfg)] == [1, 0]


def test_evaluation_keeps_them(cfg):
    before = load_flagged(cfg.DATASETS.TRAIN[0])
    without_difficult(cfg)
    assert load_flagged(cfg.DATASETS.TRAIN[0]) == before
    assert [[a["difficult"] for a in x["annotations"]] for x in before] == [[0, 1], [1]]


def test_a_loader_that_gives_the_same_dicts_again(cfg):
    dicts = load_flagged(cfg.DATASETS.TRAIN[0])
    DatasetCatalog.register("difficult_cached", lambda: dicts)
    try:
        cfg.DATASETS.TRAIN = ("difficult_cached",)
        assert len(without_difficult(cfg)) == 1
        assert [len(x["annotations"]) for x in dicts] == [2, 1]
    finally:
        DatasetCatalog.remove("difficult_cached")


def test_the_trainer_reads_the_key(cfg):
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 2
    for drop, images in ((False, {"000001", "000002"}), (True, {"000001"})):
        cfg.INPUT.DROP_DIFFICULT = drop
        batches = iter(Trainer.build_train_loader(cfg))
        seen = [x for _ in range(2) for x in next(batches)]
        assert {x["image_id"] for x in seen} == images
        assert drop != any(1 in x["instances"].gt_classes for x in seen)


def test_a_set_of_difficult_objects_only_is_refused(write_voc, voc_object, register):
    write_voc("000001", voc_object("dog", (1, 1, 20, 20), HARD))
    cfg = register(all_hard="{FORMAT: voc, ROOT: set, CLASSES: [dog]}")
    cfg.DATASETS.TRAIN = ("all_hard",)
    with pytest.raises(ValueError, match="leaves no object in all_hard: all are marked difficult"):
        without_difficult(cfg)
