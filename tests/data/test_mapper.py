import io

import numpy as np
import pytest
import torch
from detectron2 import data
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from d2_deformable.config import add_deformable_config
from d2_deformable.data import DatasetMapper
from d2_deformable.data.records import read_inputs


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = cfg.INPUT.MIN_SIZE_TEST = 32
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


@pytest.fixture
def record(register, write_voc, voc_object):
    write_voc("a", voc_object("cat", (11, 6, 30, 25)), size=(64, 64))
    register(mapper_set="{FORMAT: voc, ROOT: set, CLASSES: [cat]}")
    (record,) = DatasetCatalog.get("mapper_set")
    return record


def test_maps_as_detectron2_does(cfg, record):
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    mapped = DatasetMapper(cfg, True)(record)
    assert mapped["image"].shape == (3, 32, 32)
    instances = mapped["instances"]
    assert torch.equal(instances.gt_boxes.tensor, torch.tensor([[5, 2.5, 15, 12.5]]))
    assert instances.gt_classes.tolist() == [0]
    assert "instances" not in DatasetMapper(cfg, False)(record)


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated jpg", "truncated png"])
def test_undecodable_image_is_named(cfg, record, damage, is_train, tmp_path):
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    encoded = io.BytesIO()
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    noise.save(encoded, damage.split()[-1].replace("jpg", "jpeg") if " " in damage else "png")
    half = encoded.getvalue()[: len(encoded.getvalue()) // 2]
    file = tmp_path / "photo.jpg"
    content = {"missing": None, "empty": b"", "text": b"no image"}.get(damage, half)
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OSError, match=f"^{file}: this image cannot be read: .*Restore the file"):
        DatasetMapper(cfg, is_train)({**record, "file_name": str(file)})


def test_other_errors_stay_as_they_are(cfg, record):
    with pytest.raises(SizeMismatchError):
        DatasetMapper(cfg, False)({**record, "width": 65})


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_keep_their_contrast(cfg, tmp_path, suffix, is_train):
    """Detectron2 clips at 255, so that all is white."""
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    pixels = np.full((32, 32), 20000, np.uint16)
    pixels[8:24, 8:24] = 50000
    file = str(tmp_path / f"a.{suffix}")
    Image.fromarray(pixels).save(file)
    record = {"file_name": file, "height": 32, "width": 32}
    image = DatasetMapper(cfg, is_train)(record)["image"]
    assert image[:, 16, 16].tolist() == [194] * 3 and image[:, 2, 2].tolist() == [77] * 3
    shown, _ = read_inputs(cfg, record)
    assert shown[16, 16].tolist() == [194] * 3


def test_pixels_without_a_range_are_named(cfg, tmp_path):
    Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(OSError, match=r"a\.tiff: .*floating-point pixels have no defined range"):
        DatasetMapper(cfg, True)({"file_name": str(tmp_path / "a.tiff")})


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("size", [(3000, 4), (4, 3000), (700, 1), (1, 1)])
@pytest.mark.parametrize("crop", [None, "relative", "relative_range", "absolute"])
def test_a_pixel_is_left_of_a_thin_image(cfg, tmp_path, size, is_train, crop):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (240,), 300
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 240, 300
    if crop:
        cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, crop
        cfg.INPUT.CROP.SIZE = [64, 64] if crop == "absolute" else [0.1, 0.1]
    width, height = size
    Image.new("RGB", size).save(tmp_path / "a.png")
    Image.new("L", size).save(tmp_path / "mask.png")
    file, mask = (str(tmp_path / name) for name in ("a.png", "mask.png"))
    mapped = DatasetMapper(cfg, is_train)({"file_name": file, "sem_seg_file_name": mask})
    assert mapped["image"].shape[1:] == mapped["sem_seg"].shape
    assert min(mapped["image"].shape) >= 1 and max(mapped["image"].shape) <= 300
    whole = crop is None or not is_train
    if whole and width != height:
        assert sorted(mapped["sem_seg"].shape) == [1, 300]
    box = {"bbox": [0, 0, width, height], "bbox_mode": 0, "category_id": 0}
    found = DatasetMapper(cfg, True)({"file_name": file, "annotations": [box]})["instances"]
    assert len(found) == 1


def test_masks_beside_boxes_keep_their_indices(cfg, tmp_path):
    """As for a PanopticFPN, for which Detectron2 would read the brightness of the palette."""
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    mask = Image.fromarray(np.full((32, 32), 3, np.uint8))
    mask.putpalette([200, 10, 10] * 256)
    mask.save(tmp_path / "mask.png")
    record = {"file_name": str(tmp_path / "a.png"), "annotations": []}
    mapped = DatasetMapper(cfg, True)(record | {"sem_seg_file_name": str(tmp_path / "mask.png")})
    assert mapped["sem_seg"].unique().tolist() == [3] and len(mapped["instances"]) == 0


@pytest.mark.parametrize("is_crowd", [None, 1])
def test_a_crop_for_masks_of_an_image_without_objects(cfg, tmp_path, is_crowd):
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    cfg.INPUT.CROP.ENABLED = cfg.MODEL.MASK_ON = True
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    crowd = {"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": 0, "iscrowd": 1}
    record = {"file_name": str(tmp_path / "a.png"), "annotations": [crowd] if is_crowd else []}
    assert len(DatasetMapper(cfg, True)(record)["instances"]) == 0


@pytest.mark.parametrize("masks", [False, True])
def test_a_record_is_that_of_detectron2(cfg, record, masks):
    """Same random numbers, same fields."""
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (24, 32), "horizontal"
    cfg.INPUT.CROP.ENABLED, cfg.MODEL.MASK_ON = not masks, masks  # both need shapely
    add_deformable_config(cfg)
    (box,) = record["annotations"]
    shapes = {"segmentation": [[10, 5, 30, 5, 30, 25]], "iscrowd": 0}
    given = record | {"annotations": [box | shapes, box | shapes | {"iscrowd": 1}]}
    for seed in range(5):
        found = []
        for mapper in (DatasetMapper, data.DatasetMapper):
            np.random.seed(seed)
            found.append(mapper(cfg, True)(given))
        ours, theirs = found
        assert ours.keys() == theirs.keys() and torch.equal(ours["image"], theirs["image"])
        for field, value in theirs["instances"].get_fields().items():
            ours_too = ours["instances"].get(field)
            if field == "gt_masks":
                assert [p.tolist() for (p,) in ours_too] == [p.tolist() for (p,) in value]
            else:
                assert torch.equal(*(getattr(v, "tensor", v) for v in (ours_too, value)))
