import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_deformable.data import shapes
from d2_deformable.data.warped_shapes import WarpedShapesFormat


def test_pictures_are_the_same_everywhere():
    """Change these literals and `warped_shapes.VERSION` together."""
    image, objects = WarpedShapesFormat(image_size=96, seed=5).draw(3)
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == "b387a994c7aeb550"
    masks = b"".join(np.packbits(mask).tobytes() for _, mask in objects)
    assert hashlib.sha256(masks).hexdigest()[:16] == "3f6a25742770e4eb"
    assert [shapes.NAMES[label] for label, _ in objects] == ["star", "heart", "ring", "heart"]


def test_a_picture_depends_on_seed_split_and_index_alone():
    def pixels(index=0, **fields):
        return WarpedShapesFormat(image_size=64, **fields).draw(index)[0]

    assert np.array_equal(pixels(num_images=1), pixels(num_images=9))
    others = [pixels(seed=1), pixels(split="val"), pixels(index=1)]
    assert not any(np.array_equal(pixels(), other) for other in others)


def test_objects_are_as_promised():
    form = WarpedShapesFormat(image_size=96)
    pictures = [form.draw(index) for index in range(150)]
    sides, labels, counts = [], [], []
    for image, objects in pictures:
        assert image.shape == (96, 96, 3)
        assert image.dtype == np.uint8
        counts.append(len(objects))
        owners = np.zeros((96, 96), int)
        for label, mask in objects:
            owners += mask
            labels.append(label)
            ys, xs = np.nonzero(mask)
            sides.append(max(np.ptp(xs), np.ptp(ys)) + 1)
            assert mask.sum() > 20
        assert owners.max() == 1, "masks hold visible pixels only, so none twice"
    assert set(counts) == {1, 2, 3, 4}
    assert np.bincount(labels, minlength=8).min() > len(labels) / 16
    assert min(sides) < 0.25 * 96
    assert max(sides) > 0.65 * 96


def sides(variation):
    form = WarpedShapesFormat(image_size=128, variation=variation)
    masks = [mask for index in range(60) for _, mask in form.draw(index)[1]]
    return [max(np.ptp(axis) + 1 for axis in np.nonzero(mask)) for mask in masks]


def test_variations():
    wide, warped, rigid = sides("wide"), sides("warped"), sides("rigid")
    assert min(wide) < 0.12 * 128 < min(warped) and max(wide) > 0.65 * 128
    assert max(rigid) < 1.4 * np.median(rigid)  # some are partly hidden
    assert 0.8 < np.median(rigid) / np.median(wide) < 1.25


def test_rigid_shapes_of_a_class_are_equal():
    form = WarpedShapesFormat(image_size=128, variation="rigid")
    outlines = {}
    for index in range(60):
        for label, mask in form.draw(index)[1]:
            ys, xs = np.nonzero(mask)
            outlines.setdefault(label, []).append((np.ptp(ys), np.ptp(xs), len(ys)))
    assert len(outlines) == len(shapes.NAMES)
    for sizes in outlines.values():  # the others are partly hidden
        assert sizes.count(max(sizes)) > len(sizes) / 2


def test_variations_have_the_same_backgrounds(root):
    forms = [WarpedShapesFormat(root, image_size=64, variation=v) for v in shapes.VARIATIONS]
    assert len({form.folder for form in forms}) == 3
    images, objects = zip(*(form.draw(0) for form in forms), strict=True)
    free = ~np.logical_or.reduce([mask for some in objects for _, mask in some])
    grain = 25
    for image in images[1:]:
        assert abs(image[free].astype(int) - images[0][free]).max() <= grain


def test_shapes_fill_about_their_unit_square():
    v, u = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j]
    for name, shape in shapes.SHAPES.items():
        inside = shape(u, v) > 0
        reach = np.abs(np.stack([u, v]))[:, inside].max()
        assert 0.7 < reach < 1.2, name
        assert 0.6 < inside.mean() * 9 < 3, name  # area, where the square's is 4


def test_files_hold_what_was_drawn(register):
    fields = "{FORMAT: warped_shapes, SPLIT: val, NUM_IMAGES: 3, IMAGE_SIZE: 64, SEED: 2}"
    register(shapes_set=fields)
    dicts = DatasetCatalog.get("shapes_set")
    assert MetadataCatalog.get("shapes_set").thing_classes == list(shapes.NAMES)
    assert len(shapes.NAMES) == 8
    form = WarpedShapesFormat(split="val", num_images=3, image_size=64, seed=2)
    for index, record in enumerate(dicts):
        image, objects = form.draw(index)
        assert np.array_equal(np.array(Image.open(record["file_name"])), image)
        assert (record["width"], record["height"]) == (64, 64)
        assert len(record["annotations"]) == len(objects)
        for annotation, (label, mask) in zip(record["annotations"], objects, strict=True):
            assert annotation["category_id"] == label
            assert np.array_equal(pycocotools.mask.decode(annotation["segmentation"]), mask)
            ys, xs = np.nonzero(mask)
            x0, y0, width, height = annotation["bbox"]
            corners = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert (x0, y0, x0 + width, y0 + height) == corners


def test_generated_once(root, monkeypatch):
    form = WarpedShapesFormat(root, num_images=2, image_size=32)
    first = form.load("shapes_once")
    monkeypatch.setattr(WarpedShapesFormat, "_generate", None)  # not called again
    assert form.load("shapes_once") == first
    MetadataCatalog.remove("shapes_once")


def test_concurrent_generation_leaves_one_whole_set(root):
    form = WarpedShapesFormat(root, num_images=4, image_size=32)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: form._generate(), range(4)))
    assert os.listdir(root) == [form.folder.name]
    assert len(json.loads((form.folder / "instances.json").read_text())["images"]) == 4


def test_failed_generation_leaves_nothing(root, monkeypatch):
    form = WarpedShapesFormat(root, num_images=2, image_size=32)

    def interrupt(mask, label):
        raise KeyboardInterrupt

    monkeypatch.setattr("d2_deformable.data.warped_shapes._annotation", interrupt)
    with pytest.raises(KeyboardInterrupt):
        form._generate()
    assert os.listdir(root) == []


def test_unusable_folder_is_named(root):
    form = WarpedShapesFormat(root, num_images=1, image_size=32)
    (form.folder / "leftover").mkdir(parents=True)
    message = f"{form.folder}: cannot generate warped_shapes here .*give another ROOT"
    with pytest.raises(OSError, match=message):
        form.load("shapes_leftover")
    assert os.listdir(root) == [form.folder.name]


def test_masks_of_classes(register, root):
    """Masks show detection's objects: they are drawn from its json and stored next to it, and the
    pictures do not change."""
    fields = "{FORMAT: warped_shapes, SPLIT: val, NUM_IMAGES: 4, IMAGE_SIZE: 64, SEED: 2"
    register(boxes=f"{fields}}}")
    boxes = DatasetCatalog.get("boxes")
    before = {path: path.read_bytes() for path in root.rglob("v1-*/*") if path.is_file()}
    register(masks=f"{fields}, TASK: segmentation}}")
    masks = DatasetCatalog.get("masks")
    assert {path: path.read_bytes() for path in before} == before
    assert DatasetCatalog.get("boxes") == boxes
    meta = MetadataCatalog.get("masks")
    assert meta.stuff_classes == ["background", *shapes.NAMES]
    assert meta.evaluator_type == "sem_seg" and not hasattr(meta, "thing_classes")
    form = WarpedShapesFormat(split="val", num_images=4, image_size=64, seed=2)
    for index, (record, twin) in enumerate(zip(masks, boxes, strict=True)):
        assert record["file_name"] == twin["file_name"]
        expected = np.zeros((64, 64), np.uint8)
        for label, visible in form.draw(index)[1]:
            expected[visible] = label + 1
        assert np.array_equal(np.array(Image.open(record["sem_seg_file_name"])), expected)


def test_masks_are_written_once_and_atomically(root, monkeypatch):
    form = WarpedShapesFormat(root, num_images=3, image_size=32, task="segmentation")
    form._generate()
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda _: form.load("shapes_masks"), range(3))
    assert others == [first, first]
    assert os.listdir(root) == [form.folder.name]
    monkeypatch.setattr(WarpedShapesFormat, "_write_masks", None)  # not called again
    assert form.load("shapes_masks") == first
