import io

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from d2_deformable.data import DatasetMapper


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
    with pytest.raises(OSError, match=f"^{file}: this image cannot be read .*Restore the file"):
        DatasetMapper(cfg, is_train)({**record, "file_name": str(file)})


def test_other_errors_stay_as_they_are(cfg, record):
    with pytest.raises(SizeMismatchError):
        DatasetMapper(cfg, False)({**record, "width": 65})
