import re

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_deformable.data import check_datasets, register_custom_datasets

VOC = "{FORMAT: voc, ROOT: set, CLASSES: [cat, dog]}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            "{FORMAT: x}",
            "bad.FORMAT must be one of voc, coco, yolo, csv, mask, warped_shapes; got 'x'",
        ),
        (
            "{ROOT: set}",
            "bad.FORMAT must be one of voc, coco, yolo, csv, mask, warped_shapes; got None",
        ),
        ("{FORMAT: [voc]}", "got ['voc']"),
        ("voc", "bad must be a mapping such as {FORMAT: voc, ROOT: ...}, not voc"),
        (
            "{FORMAT: voc, CLASES: [cat]}",
            "bad.CLASES: unknown field; FORMAT voc has ROOT, IMAGES, ANNOTATIONS, SPLIT, CLASSES",
        ),
        (
            "{FORMAT: coco, SPLIT: train}",
            "bad.SPLIT: unknown field; FORMAT coco has ROOT, IMAGES, ANNOTATIONS, CLASSES",
        ),
        (
            "{FORMAT: warped_shapes, CLASSES: [a]}",
            "unknown field; FORMAT warped_shapes has ROOT, SPLIT, NUM_IMAGES, IMAGE_SIZE, SEED",
        ),
        ("{FORMAT: voc, ROOT: set}", "bad: FORMAT voc needs CLASSES"),
        ("{FORMAT: coco, ROOT: set}", "bad: FORMAT coco needs ANNOTATIONS"),
        ("{FORMAT: voc, CLASSES: [cat, true]}", "bad.CLASSES: expected text, got True; quote it"),
        ("{FORMAT: voc, CLASSES: [cat, cat]}", "bad.CLASSES: a name occurs twice in cat, cat"),
        ("{FORMAT: voc, CLASSES: 3}", "bad.CLASSES: expected a list of names or the path"),
        ("{FORMAT: voc, IMAGES: [a], CLASSES: [a]}", "bad.IMAGES: expected text, got ['a']"),
        (
            "{FORMAT: warped_shapes, SPLIT: test}",
            "bad: SPLIT must be one of train, val; got 'test'",
        ),
        (
            "{FORMAT: warped_shapes, TASK: boxes}",
            "bad: TASK must be one of detection, segmentation; got 'boxes'",
        ),
        ("{FORMAT: warped_shapes, NUM_IMAGES: 0}", "bad: NUM_IMAGES must be at least 1; got 0"),
        ("{FORMAT: warped_shapes, IMAGE_SIZE: 31}", "bad: IMAGE_SIZE must be at least 32; got 31"),
        ("{FORMAT: warped_shapes, SEED: -1}", "bad: SEED must be at least 0; got -1"),
        ("{FORMAT: warped_shapes, SEED: x}", "bad.SEED: expected a whole number, got 'x'"),
    ],
)
def test_bad_fields_are_named(register, fields, message):
    with pytest.raises(ValueError, match=re.escape(f"{message}")) as error:
        register(bad=fields)
    assert str(error.value).startswith("DATASETS.CUSTOM.bad")
    assert "bad" not in DatasetCatalog


def test_name_of_another_data_set_is_refused(register):
    message = "DATASETS.CUSTOM.coco_2017_val: a data set of this name exists already"
    with pytest.raises(ValueError, match=message):
        register(coco_2017_val=VOC)


def test_registering_again(register, write_voc, voc_object):
    write_voc("a", voc_object("dog", (1, 1, 9, 9)))
    register(custom_again=VOC)
    meta, loader = MetadataCatalog.get("custom_again"), DatasetCatalog["custom_again"]
    register(custom_again=VOC)
    assert MetadataCatalog.get("custom_again") is meta
    assert DatasetCatalog["custom_again"] is loader

    register(custom_again=VOC.replace("cat, dog", "dog, cat"))
    assert MetadataCatalog.get("custom_again").thing_classes == ["dog", "cat"]
    assert DatasetCatalog.get("custom_again")[0]["annotations"][0]["category_id"] == 0


def test_relative_root_starts_at_detectron2_datasets(register, write_voc, monkeypatch, root):
    write_voc("a", folder="other/set")
    register(custom_root=VOC)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "other"))
    register(custom_root=VOC)
    (record,) = DatasetCatalog.get("custom_root")
    assert record["file_name"] == str(root / "other/set/JPEGImages/a.jpg")

    monkeypatch.delenv("DETECTRON2_DATASETS")
    register(custom_root=VOC)
    assert MetadataCatalog.get("custom_root").dirname == "datasets/set"


def test_classes_from_a_file_and_numbers(register, write_voc, voc_object, root):
    write_voc("a", voc_object("10", (1, 1, 9, 9)))
    (root / "set/names.txt").write_text("\ufeffnine\n\n 10 \n", encoding="utf-8")
    register(
        custom_file="{FORMAT: voc, ROOT: set, CLASSES: names.txt}",
        custom_numbers="{FORMAT: voc, ROOT: set, CLASSES: [9, 10]}",
    )
    assert MetadataCatalog.get("custom_file").thing_classes == ["nine", "10"]
    assert MetadataCatalog.get("custom_numbers").thing_classes == ["9", "10"]
    assert DatasetCatalog.get("custom_numbers")[0]["annotations"][0]["category_id"] == 1
    message = (
        "set/cat: no such file, from DATASETS.CUSTOM.custom_text.CLASSES .*give names as a list"
    )
    with pytest.raises(FileNotFoundError, match=message):
        register(custom_text="{FORMAT: voc, ROOT: set, CLASSES: cat}")


def test_key_value_overrides(register, write_voc):
    write_voc("a")
    cfg = register(custom_override="{FORMAT: voc, ROOT: nowhere, CLASSES: [cat]}")
    prefix = "DATASETS.CUSTOM.custom_override"
    cfg.merge_from_list([f"{prefix}.ROOT", "set", f"{prefix}.CLASSES", "('dog', 'cow')"])
    register_custom_datasets(cfg)
    assert MetadataCatalog.get("custom_override").thing_classes == ["dog", "cow"]
    assert len(DatasetCatalog.get("custom_override")) == 1


def test_check_datasets(register, write_voc, voc_object, root):
    write_voc("a", voc_object("cat", (1, 1, 9, 9)))
    write_voc("nothing", folder="empty")
    (root / "set/ImageSets/Main/wrong.txt").write_text("b")
    cfg = register(
        check_a=VOC,
        check_b=VOC,
        check_other="{FORMAT: voc, ROOT: set, CLASSES: [dog, cat]}",
        check_wrong="{FORMAT: voc, ROOT: set, CLASSES: [cat, dog], SPLIT: wrong}",
        check_empty="{FORMAT: voc, ROOT: empty, CLASSES: [cat, dog]}",
    )
    with pytest.raises(ValueError, match="check_empty: none of its images has an object"):
        check_datasets(cfg, ["check_empty"])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("check_a",), ("check_b",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    check_datasets(cfg)
    cfg.DATASETS.TRAIN += ("coco_2017_train",)
    missing = r"instances_train2017.json: missing, from the data set coco_2017_train.*DATASETS"
    with pytest.raises(FileNotFoundError, match=missing):
        check_datasets(cfg)
    cfg.DATASETS.TRAIN = ("check_c",)
    with pytest.raises(ValueError, match="names check_c, .*; did you mean check_[a-z]+"):
        check_datasets(cfg)
    cfg.DATASETS.TRAIN = ("check_a",)
    cfg.DATASETS.TEST = ("check_wrong",)
    with pytest.raises(FileNotFoundError, match=r"b\.xml: no such file"):
        check_datasets(cfg)
    cfg.DATASETS.TEST = ("check_other",)
    message = r"check_a has the classes \['cat', 'dog'\], but check_other has \['dog', 'cat'\]"
    with pytest.raises(ValueError, match=message):
        check_datasets(cfg)
    cfg.DATASETS.TEST = ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    for detector in ("GeneralizedRCNN", "PanopticFPN", "ClassAwareRPN"):
        cfg.MODEL.META_ARCHITECTURE = detector
        with pytest.raises(ValueError, match="NUM_CLASSES is 80, but check_a has the 2 classes"):
            check_datasets(cfg)
    for detector in ("RetinaNet", "build_fcos"):
        cfg.MODEL.META_ARCHITECTURE = detector
        with pytest.raises(ValueError, match="RETINANET.NUM_CLASSES is 80, but check_a has the 2"):
            check_datasets(cfg)
    for other in ("ProposalNetwork", "Unknown"):  # Detectron2 itself refuses to build the latter
        cfg.MODEL.META_ARCHITECTURE = other
        check_datasets(cfg)


def test_fields_may_come_from_code(write_voc, root):
    """Without a YAML; None means the default value."""
    from d2_deformable.data.custom import parse

    write_voc("a")
    form = parse("x", CfgNode({"FORMAT": "voc", "ROOT": "set", "CLASSES": ("cat",), "SPLIT": None}))
    assert (form.root, form.classes, form.split) == (root / "set", ("cat",), "")
