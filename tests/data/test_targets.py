"""What the heads of a network need of a data set, checked before training."""

import json

import pytest
from detectron2.config import get_cfg
from PIL import Image

from d2_deformable import add_deformable_config
from d2_deformable.data import check_datasets

SQUARE = [[16, 12, 48, 12, 48, 36, 16, 36]]
CODE = {"counts": [780, 24, 2268], "size": [48, 64]}
TURNED = {"counts": [780, 24, 2268], "size": [64, 48]}


@pytest.fixture
def check(register, tmp_path):
    """check(annotation, ...): run the checks on two images, each with one of these annotations."""
    (tmp_path / "set").mkdir()
    for i in (1, 2):
        Image.new("RGB", (64, 48)).save(tmp_path / f"set/{i}.png")

    def check(*annotations, size=(64, 48), keypoints=None, train=True, **settings):
        common = {"category_id": 1, "bbox": [16, 12, 32, 24]}
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": size[0], "height": size[1]}
                for i in (1, 2)
            ],
            "categories": [{"id": 1, "name": "bolt"} | ({"keypoints": keypoints or []})],
            "annotations": [
                common | {"id": 10 * i, "image_id": i} | annotation
                for i, annotation in enumerate(annotations, 1)
            ],
        }
        (tmp_path / "set/t.json").write_text(json.dumps(content))
        register(targets="{FORMAT: coco, ROOT: set, ANNOTATIONS: t.json}")
        cfg = get_cfg()
        add_deformable_config(cfg)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (("targets",), ()) if train else ((), ("targets",))
        cfg.merge_from_list([part for key in settings.items() for part in key])
        check_datasets(cfg)

    return check


MASKS = {"MODEL.MASK_ON": True}
BITMASKS = MASKS | {"INPUT.MASK_FORMAT": "bitmask"}
POINTS = {"MODEL.KEYPOINT_ON": True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 2}


@pytest.mark.parametrize("shape", [None, [], [[]], [[16, 12, 48, 36]], [[1, 2, 3]], TURNED])
def test_boxes_without_masks(check, shape):
    """Stop only a network with a mask head, which names the file, the id and the key."""
    check({"segmentation": SQUARE}, {"segmentation": shape})
    message = r"set/t\.json: annotation 20, of 2\.png, has no mask, which MODEL\.MASK_ON needs"
    for settings in (MASKS, BITMASKS):
        for train in (True, False):
            with pytest.raises(ValueError, match=message):
                check({"segmentation": SQUARE}, {"segmentation": shape}, train=train, **settings)


def test_polygons_and_codes(check):
    mixed = {"segmentation": SQUARE}, {"segmentation": CODE}
    message = r"t\.json: annotation 20, .* run-length code .* set INPUT\.MASK_FORMAT bitmask"
    with pytest.raises(ValueError, match=message):
        check(*mixed, **MASKS)
    check(*mixed, train=False, **MASKS)  # evaluation reads both
    check(*mixed, **BITMASKS)
    check({"segmentation": SQUARE}, {"segmentation": CODE, "iscrowd": 1}, **MASKS)


@pytest.mark.parametrize("settings", [{}, MASKS, POINTS])
def test_only_crowds(check, settings):
    crowd = {"segmentation": CODE, "iscrowd": 1}
    with pytest.raises(ValueError, match=r"set/t\.json: every object of targets is marked iscrowd"):
        check(crowd, crowd, **settings)
    check(crowd, {"segmentation": SQUARE})


def test_keypoints(check):
    two = {"keypoints": [1, 2, 2, 0, 0, 0]}
    check(two, two, keypoints=["left", "right"], **POINTS)
    for wrong in ({}, {"keypoints": []}, {"keypoints": [1, 2, 2]}, {"keypoints": [1, 2, 2, 3]}):
        check(two, wrong, keypoints=["left", "right"])
        message = r"t\.json: annotation 20, of 2\.png, has \d keypoints?, but MODEL\.ROI_KEY"
        with pytest.raises(ValueError, match=message):
            check(two, wrong, keypoints=["left", "right"], **POINTS)
    with pytest.raises(
        ValueError, match=r"NUM_KEYPOINTS is 2, but .*t\.json names the 1 keypoint left"
    ):
        check(two, two, keypoints=["left"], **POINTS)
    with pytest.raises(ValueError, match=r"t\.json: has no keypoints, .* set MODEL\.KEYPOINT_ON"):
        check(two, two, **POINTS)


def test_formats_without_masks(register, write_voc, voc_object):
    write_voc("a", voc_object("cat", (1, 1, 9, 9)))
    cfg = register(targets_voc="{FORMAT: voc, ROOT: set, CLASSES: [cat]}")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.MASK_ON = 1, True
    with pytest.raises(ValueError, match=r"set/Annotations: an object, of a\.jpg, has no mask"):
        check_datasets(cfg, ["targets_voc"])


@pytest.mark.parametrize("turned", [False, True])
def test_sizes(check, tmp_path, turned):
    """The header of each file is compared before training, not when the image is drawn."""
    check({}, {})
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 8
    Image.new("RGB", (64, 48) if turned else (60, 48)).save(tmp_path / "set/2.png", exif=exif)
    found = "48 x 64, turned by its EXIF orientation" if turned else "60 x 48"
    message = rf"set/2\.png \({found}; annotated as 64 x 48\): its size differs from that in .*t\.j"
    with pytest.raises(ValueError, match=message):
        check({}, {})
    (tmp_path / "set/2.png").write_bytes(b"broken")  # left to training, which may skip it
    check({}, {})
