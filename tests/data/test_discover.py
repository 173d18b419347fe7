import json
import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_deformable.data.discover import _split_of, discover, name_splits, train_and_val
from drawn import CLASSES, WRITERS, draw, write_drawn

BOXES = [kind for kind in WRITERS if kind != "mask"]


@pytest.fixture
def load(register):
    """Load what `discover` found as {split: [(file stem, [(class name, box), ...]), ...]}."""

    def load(splits):
        loaded = {}
        for split, fields in splits.items():
            register(**{f"discovered_{split}": json.dumps(fields)})
            dicts = DatasetCatalog.get(f"discovered_{split}")
            meta = MetadataCatalog.get(f"discovered_{split}")
            loaded[split] = [
                (
                    record["file_name"].rpartition("/")[2].partition(".")[0],
                    [
                        (meta.thing_classes[a["category_id"]], a["bbox"])
                        for a in record["annotations"]
                    ],
                )
                for record in dicts
            ]
        return loaded

    return load


@pytest.mark.parametrize("kind", BOXES)
def test_splits(kind, load, tmp_path):
    root = write_drawn(tmp_path / "parts", kind, {"train": 2, "val": 1, "test": 1})
    found = discover(root, kind)
    assert list(found) == ["train", "val", "test"]
    for fields in found.values():
        assert (fields["FORMAT"], fields["ROOT"]) == (kind, str(root))
        assert fields["CLASSES"] == list(CLASSES), "without the category that has no annotation"
    images = [image for of_split in load(found).values() for image in of_split]
    assert [stem for stem, _ in images] == ["train_0", "train_1", "val_0", "test_0"]
    for index, (_, objects) in enumerate(images):
        has_size = kind == "coco"  # (x0, y0, width, height)
        for (name, box), (label, corners) in zip(objects, draw(index)[1], strict=True):
            x0, y0, x1, y1 = corners
            expected = (x0, y0, x1 - x0, y1 - y0) if has_size else corners
            assert (name, box) == (CLASSES[label], pytest.approx(expected))


def test_what_is_trained_and_tested():
    train, val, test, whole = ({"SPLIT": name} for name in ("train", "val", "test", "all"))
    assert train_and_val({"train": train, "val": val, "test": test}) == {"train": train, "val": val}
    assert train_and_val({"train": train, "test": test}) == {"train": train, "val": test}
    divided = {"train": whole | {"PART": "train"}, "val": whole | {"PART": "val"}}
    assert train_and_val({"all": whole}) == divided


def test_names(tmp_path):
    assert list(name_splits(tmp_path / "my parts.v2", {"train": {}})) == ["my_parts_v2_train"]
    assert list(name_splits(tmp_path / "coco_2017", {"train": {}})) == ["my_coco_2017_train"]


@pytest.mark.parametrize("kind", WRITERS)
def test_one_split_is_divided(kind, register, tmp_path):
    found = discover(write_drawn(tmp_path / "parts", kind, {"all": 10}), kind)
    found = name_splits(tmp_path / "discovered", train_and_val(found))
    register(**{name: json.dumps(fields) for name, fields in found.items()})
    train, val = ({r["file_name"] for r in DatasetCatalog.get(name)} for name in found)
    assert (len(train), len(val), len(train | val)) == (8, 2, 10)


def test_masks(register, tmp_path):
    root = write_drawn(tmp_path / "parts", "mask", {"train": 2, "val": 1})
    found = discover(root, "mask")
    assert [fields["SPLIT"] for fields in found.values()] == ["train.txt", "val.txt"]
    assert found["train"]["CLASSES"] == ["background", *CLASSES]
    (root / "classes.txt").unlink()
    assert discover(root, "mask")["train"]["CLASSES"] == ["class_0", "class_1", "class_2"]


def test_roboflow_voc(load, tmp_path):
    root = write_drawn(tmp_path / "parts", "voc", {"all": 3})
    for folder, stems in (("train", (0, 1)), ("valid", (2,))):
        (root / folder).mkdir()
        for i in stems:
            (root / f"JPEGImages/all_{i}.jpg").rename(root / f"{folder}/all_{i}.jpg")
            (root / f"Annotations/all_{i}.xml").rename(root / f"{folder}/all_{i}.xml")
    loaded = load(discover(root, "voc"))
    assert {name: [stem for stem, _ in images] for name, images in loaded.items()} == {
        "train": ["all_0", "all_1"],
        "val": ["all_2"],
    }


@pytest.mark.parametrize("split", ["val", "valid", "validation"])
def test_names_of_splits(split, load, tmp_path):
    root = write_drawn(tmp_path / "parts", "yolo", {"train": 1, split: 1})
    if split == "validation":  # no tool writes this key
        text = (root / "data.yaml").read_text()
        (root / "data.yaml").write_text(text.replace("validation:", "val:"))
    assert [len(images) for images in load(discover(root, "yolo")).values()] == [1, 1]


def test_label_studio(load, tmp_path):
    root = write_drawn(tmp_path / "parts", "yolo", {"all": 5})
    (root / "data.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="holds neither a data.yaml nor a classes.txt"):
        discover(root, "yolo")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    assert [len(images) for images in load(discover(root, "yolo")).values()] == [5]


def test_given_fields(load, tmp_path):
    root = write_drawn(tmp_path / "parts", "csv", {"train": 3, "val": 2})
    found = discover(root, "csv", {"ANNOTATIONS": "val.csv"})
    assert {split: len(images) for split, images in load(found).items()} == {"all": 2}


def test_coco_folders_with_the_same_file_names(load, tmp_path):
    root = tmp_path / "parts"
    write_drawn(root, "coco", {"train": 1, "val": 1})
    for split in ("train", "val"):
        file = root / split / "_annotations.coco.json"
        text = file.read_text().replace(f"{split}_0", "same")
        (root / split / f"{split}_0.jpg").rename(root / split / "same.jpg")
        (root / f"instances_{split}.json").write_text(text)
        file.unlink()
    assert [f["IMAGES"] for f in discover(root, "coco").values()] == ["train", "val"]


def test_a_linked_folder_of_images(load, tmp_path):
    root = write_drawn(tmp_path / "parts", "coco", {"all": 2})
    (root / "images").rename(tmp_path / "elsewhere")
    (root / "pictures").symlink_to(tmp_path / "elsewhere")
    assert discover(root, "coco")["all"]["IMAGES"] == "pictures"


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("voc", {}, "holds no .xml file"),
        ("voc", {"a.xml": "<annotation/>"}, "a.xml, has an object"),
        ("voc", {"a.xml": "<a"}, "a.xml: not well-formed XML"),
        ("coco", {}, "holds no json in COCO's format"),
        ("coco", {"a.json": "[]"}, "a.json: not COCO's instance format"),
        ("coco", {"a.json": "{}", "b.json": "{}"}, "a.json, b.json may all be the json"),
        ("csv", {}, "holds no csv table"),
        ("csv", {"a.csv": "b.jpg,1,2,3,4,cat"}, "holds its images, such as b.jpg"),
        ("yolo", {"a.yaml": "", "b.yaml": ""}, "a.yaml, b.yaml may all be its data.yaml"),
        ("yolo", {"a.yaml": "names: [a]"}, "a.yaml: has none of the splits train, val and test"),
        ("yolo", {"classes.txt": "cat"}, "holds no image"),
        ("mask", {}, "no folder of masks"),
        ("mask", {"masks/a.png": ""}, "no folder of images"),
        ("labelme", {}, "format labelme: choose one of voc, coco, yolo, csv, mask"),
    ],
)
def test_unknown_layouts(kind, files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(message)):
        discover(tmp_path, kind)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        discover(tmp_path / "nowhere", "voc")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("annotations/instances_val2017.json", "val"),
        ("train/labels.json", "train"),
        ("Training/a.csv", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("test-images", "test"),
        ("values.csv", "all"),
        ("latest.csv", "all"),
    ],
)
def test_words_of_splits(name, split):
    assert _split_of(Path(name)) == split
