"""FORMAT mask: palettes are indices, each fault gives one clear error, and masks reach a model."""

import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from PIL import Image

from d2_deformable import add_deformable_config
from d2_deformable.data import DatasetMapper, check_datasets
from d2_deformable.data.masks import MaskFormat, read_mask
from drawn import write_drawn

FIELDS = "{FORMAT: mask, ROOT: set, CLASSES: [cat, dog]}"
LABELS = np.array([[0, 1, 1], [255, 0, 1]], np.uint8)  # 3 wide, 2 high


@pytest.fixture
def write(root):
    """Write one image of the data set "set" and its mask; return the mask's path."""

    def write(stem, labels=LABELS, size=None, palette=True, mode=None):
        folder = root / "set"
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        size = size or labels.shape[::-1]
        Image.new("RGB", size, (9, 99, 199)).save(folder / f"images/{stem}.jpg")
        mask = Image.fromarray(labels)
        if palette:  # colours whose grey value is not an index
            mask.putpalette([(37 * i) % 256 for i in range(3 * 256)])
        path = folder / f"masks/{stem}.png"
        (mask.convert(mode) if mode else mask).save(path)
        return path

    return write


@pytest.fixture
def segmentor():
    """Turn the cfg of `register` into one of a SemanticSegmentor with two classes."""

    def segmentor(cfg, *names):
        cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
        cfg.DATASETS.TRAIN = names
        cfg.DATASETS.TEST = ()
        cfg.INPUT.RANDOM_FLIP = "none"
        return cfg

    return segmentor


@pytest.mark.parametrize("palette", [True, False])
def test_records_and_metadata(register, write, palette, root):
    write("b", palette=palette)
    write("a", palette=palette)
    register(masks=FIELDS)
    first, second = DatasetCatalog.get("masks")
    assert first == {
        "file_name": f"{root}/set/images/a.jpg",
        "sem_seg_file_name": f"{root}/set/masks/a.png",
        "image_id": "a",
        "width": 3,
        "height": 2,
    }
    assert second["image_id"] == "b"
    meta = MetadataCatalog.get("masks")
    assert meta.stuff_classes == ["cat", "dog"]
    assert (meta.ignore_label, meta.evaluator_type) == (255, "sem_seg")
    assert not hasattr(meta, "thing_classes")


def test_split_folders_and_ignored_value(register, write, root):
    labels = np.array([[0, 7]], np.uint8)
    for stem in ("a", "b", "c"):
        write(stem, labels)
    (root / "set/masks").rename(root / "set/labels")
    (root / "set/images").rename(root / "set/photos")
    (root / "set/train.txt").write_text("c\na\n")
    (root / "set/names.txt").write_text("cat\ndog\n")
    register(
        masks="{FORMAT: mask, ROOT: set, IMAGES: photos, MASKS: labels, SPLIT: train.txt, "
        "CLASSES: names.txt, IGNORE: 7}"
    )
    assert [record["image_id"] for record in DatasetCatalog.get("masks")] == ["c", "a"]
    assert MetadataCatalog.get("masks").ignore_label == 7


@pytest.mark.parametrize(
    "fields, message",
    [
        ("{FORMAT: mask}", "bad: FORMAT mask needs CLASSES, as a list or a text file"),
        ("{FORMAT: mask, CLASSES: [a, b], IGNORE: 1}", "bad: IGNORE must lie above the indices"),
        ("{FORMAT: mask, CLASSES: [a, b], IGNORE: 256}", "8 bits; got 256"),
        ("{FORMAT: mask, CLASSES: [a], ANNOTATIONS: b}", "bad.ANNOTATIONS: unknown field"),
    ],
)
def test_bad_fields_are_named(register, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        register(bad=fields)


def load(root, **fields):
    return MaskFormat(root / "set", classes=("cat", "dog"), **fields).load("mask_faults")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_a_mask_of_colours_is_refused(write, root, mode):
    path = write("a", palette=mode in ("RGB", "RGBA"), mode=mode)
    with pytest.raises(
        ValueError, match=rf"^{path}: a mask holds class indices .*this one is {mode}"
    ):
        load(root)


def test_another_size_than_the_image_is_refused(write, root):
    path = write("a", size=(2, 3))
    with pytest.raises(ValueError, match=rf"^{path}: is 3 x 2 pixels, but .*a.jpg is 2 x 3$"):
        load(root)


def test_an_index_without_a_class_is_refused(write, root):
    path = write("a", np.array([[0, 2, 254, 255]], np.uint8))
    with pytest.raises(ValueError, match=rf"^{path}: holds 2, 254, neither indices of the 2 CLASS"):
        load(root)


def test_what_is_missing_is_named(write, root):
    with pytest.raises(FileNotFoundError, match=r"set/masks: no such folder, from MASKS"):
        load(root)
    path = write("a")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(OSError, match=rf"^{path}: not a readable mask"):
        load(root)
    path.unlink()
    with pytest.raises(ValueError, match=r"set/masks: holds no .png file"):
        load(root)
    (root / "set/val.txt").write_text("a\n")
    with pytest.raises(
        FileNotFoundError, match=rf"^{path}: no such file, from line 1 of .*val.txt"
    ):
        load(root, split="val.txt")
    write("a")
    (root / "set/images/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=rf"^{path}: no image a\.\* in"):
        load(root)
    for suffix in ("bmp", "gif"):
        Image.new("RGB", (3, 2)).save(root / f"set/images/a.{suffix}")
    with pytest.raises(ValueError, match=rf"^{path}: a.bmp, a.gif in .*; keep one"):
        load(root)


def test_masks_without_a_label_are_refused(write, root):
    write("a", np.full((2, 2), 255, np.uint8))
    with pytest.raises(ValueError, match="every pixel of the masks of mask_faults is IGNORE 255"):
        load(root)


def test_a_class_without_a_pixel_is_reported(write, root, warnings):
    write("a", np.array([[0, 255]], np.uint8))  # 255 may be meant as the second class
    load(root)
    assert warnings() == [f"mask_faults: no pixel is dog, according to {root}/set/masks"]


def test_a_changed_mask_is_read_again(write, root):
    path = write("a")
    load(root)
    write("a", np.full((2, 3), 9, np.uint8))
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError, match="holds 9"):
        load(root)


# ---- Checks against the config -------------------------------------------------------------------


def test_check_datasets(register, write, segmentor, write_voc, voc_object):
    write("a")
    other = "{FORMAT: mask, ROOT: set, CLASSES: [dog, cat]}"
    ignoring = "{FORMAT: mask, ROOT: set, CLASSES: [cat, dog], IGNORE: 254}"
    write_voc("a", voc_object("cat", (1, 1, 9, 9)), folder="boxes")
    boxes = "{FORMAT: voc, ROOT: boxes, CLASSES: [cat, dog]}"
    cfg = segmentor(register(masks=FIELDS, other=other, boxes=boxes), "masks")
    check_datasets(cfg)
    cfg.DATASETS.TEST = ("other",)
    with pytest.raises(ValueError, match=r"masks has the classes \['cat', 'dog'\], but other has"):
        check_datasets(cfg)
    cfg.DATASETS.TEST = ("boxes",)
    with pytest.raises(
        ValueError, match="SemanticSegmentor needs class masks, but boxes has boxes"
    ):
        check_datasets(cfg)
    cfg.DATASETS.TEST = ()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    with pytest.raises(
        ValueError, match="SEM_SEG_HEAD.NUM_CLASSES is 3, but masks has the 2 class"
    ):
        check_datasets(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(ValueError, match="GeneralizedRCNN needs boxes, but masks has class masks"):
        check_datasets(cfg)
    write("a", np.array([[0, 1, 254]], np.uint8))
    cfg = segmentor(register(ignoring=ignoring), "ignoring")
    with pytest.raises(ValueError, match="IGNORE_VALUE is 255, but ignoring has IGNORE 254"):
        check_datasets(cfg)


# ---- The mapper ----------------------------------------------------------------------------------


def test_indices_reach_the_model(register, write, segmentor):
    """Detectron2's own mapper reads a palette as colours and converts them to grey."""
    labels = np.repeat(np.repeat(LABELS, 20, 0), 20, 1)
    write("a", labels)
    cfg = segmentor(register(masks=FIELDS), "masks")
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (20,), 20
    (record,) = DatasetCatalog.get("masks")
    for is_train in (True, False):
        mapped = DatasetMapper(cfg, is_train)(record)
        assert mapped["image"].shape == (3, 20, 30)
        assert torch.equal(mapped["sem_seg"], torch.from_numpy(labels[::2, ::2].astype(np.int64)))
        assert (mapped["height"], mapped["width"]) == (40, 60)
        assert mapped["file_name"] == record["file_name"]
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    loader = build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, True))
    for mapped in next(iter(loader)):
        assert mapped["sem_seg"].unique().tolist() == [0, 1, 255]


def test_mask_moves_with_the_image(register, root, segmentor):
    """Crop and flip: the image's blue channel encodes the origin of each pixel."""
    for name in ("images", "masks"):
        (root / f"set/{name}").mkdir(parents=True)
    labels = (np.arange(40)[:, None] // 8 * 5 + np.arange(40) // 8).astype(np.uint8)
    Image.fromarray(np.stack([labels] * 3, 2)).save(root / "set/images/a.png")
    Image.fromarray(labels).save(root / "set/masks/a.png")
    names = ", ".join(f"c{i}" for i in range(25))
    cfg = segmentor(register(masks=f"{{FORMAT: mask, ROOT: set, CLASSES: [{names}]}}"), "masks")
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [16, 24]
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (16,), 24  # as Base-Cityscapes.yaml
    mapper = DatasetMapper(cfg, True)
    crops = [mapper(DatasetCatalog.get("masks")[0]) for _ in range(8)]
    for crop in crops:
        assert crop["sem_seg"].shape == (16, 24)
        assert torch.equal(crop["image"][0], crop["sem_seg"])
    assert len({tuple(crop["sem_seg"][0].tolist()) for crop in crops}) > 2


@pytest.mark.parametrize("resolution", ["resized_ground_truth", "resized_prediction"])
def test_released_resolutions_predict_at_the_size_of_the_input(
    register, write, segmentor, resolution
):
    write("a", np.repeat(LABELS, 20, 0))
    cfg = segmentor(register(masks=FIELDS), "masks")
    cfg.TEST.SEM_SEG_RESOLUTION = resolution
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = (6,), 6, 999
    (record,) = DatasetCatalog.get("masks")
    mapped = DatasetMapper(cfg, False)(record)
    assert (mapped["height"], mapped["width"]) == tuple(mapped["image"].shape[1:]) == (80, 6)
    mapped = DatasetMapper(cfg, True)(record)
    assert (mapped["height"], mapped["width"]) == (40, 3)


# ---- Real masks ----------------------------------------------------------------------------------

DUBAI = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "dubai_seg"


@pytest.mark.skipif(
    not DUBAI.is_dir(), reason="needs the dubai_seg data set under $DETECTRON2_DATASETS"
)
def test_aerial_photographs():
    cfg = get_cfg()
    add_deformable_config(cfg)
    classes = tuple((DUBAI / "classes.txt").read_text().split())
    sets = {}
    for split, images in (("train", 56), ("val", 16)):
        form = MaskFormat(DUBAI, masks="labels", split=f"{split}.txt", classes=classes)
        sets[split] = form.load(f"dubai_{split}")
        assert len(sets[split]) == images
    assert not {r["image_id"] for r in sets["train"]} & {r["image_id"] for r in sets["val"]}
    record = sets["val"][0]
    mapped = DatasetMapper(cfg, False)(record)
    assert mapped["sem_seg"].shape == mapped["image"].shape[1:]
    indices = set(np.unique(read_mask(record["sem_seg_file_name"])).tolist())
    assert set(mapped["sem_seg"].unique().tolist()) <= indices <= {0, 1, 2, 3, 4, 255}


def write_png(file, rows, bits: int):
    """Write indices as grey of few bits, which Pillow writes only for palettes."""
    packed = np.array(rows, np.uint8)[..., None] >> np.arange(bits)[::-1] & 1
    lines = b"".join(b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in packed)
    size = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    parts = ((b"IHDR", size), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        )
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_indices_of_few_bits(tmp_path, bits):
    """Pillow multiplies grey of 2 bits by 85, and of 4 bits by 17."""
    rows = np.arange(8).reshape(2, 4) % 2**bits
    write_png(tmp_path / "a.png", rows, bits)
    labels = read_mask(tmp_path / "a.png")
    assert labels.dtype == np.uint8 and np.array_equal(labels, rows)


def test_a_mask_that_changes_is_read_again(register, tmp_path):
    root = write_drawn(tmp_path / "set", "mask", {"all": 1})
    register(mask_changed="{FORMAT: mask, ROOT: set, CLASSES: [background, bolt, nut]}")
    DatasetCatalog.get("mask_changed")
    (mask,) = (root / "masks").iterdir()
    before = mask.stat()
    Image.fromarray(np.full((64, 96), 7, np.uint8)).save(mask)
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns))  # as copies of tools keep it
    with pytest.raises(ValueError, match="holds 7, neither indices"):
        DatasetCatalog.get("mask_changed")
