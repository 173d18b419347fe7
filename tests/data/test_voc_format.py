import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

VOC = "{FORMAT: voc, ROOT: set, CLASSES: [cat, dog]}"


def test_boxes_become_continuous_corners(write_voc, voc_object, register):
    objects = voc_object("dog", (1, 1, 60, 40)) + voc_object("cat", (11, 6, 30.5, 20))
    write_voc("a", objects)
    register(voc_literal=VOC)
    (record,) = DatasetCatalog.get("voc_literal")
    file_name = record.pop("file_name")
    assert file_name.endswith("/set/JPEGImages/a.jpg")
    common = {"bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0, "difficult": 0}
    assert record == {
        "image_id": "a",
        "width": 60,
        "height": 40,
        "annotations": [
            {"bbox": [0.0, 0.0, 60.0, 40.0], "category_id": 1, **common},
            {"bbox": [10.0, 5.0, 30.5, 20.0], "category_id": 0, **common},
        ],
    }
    meta = MetadataCatalog.get("voc_literal")
    assert meta.thing_classes == ["cat", "dog"]
    assert meta.evaluator_type == "coco"
    assert meta.image_root == str(file_name)[: -len("/a.jpg")]


def test_split_by_name_by_path_and_all(write_voc, register, root):
    for stem in ("c", "a", "b"):
        write_voc(stem)
    (root / "set/ImageSets/Main/val.txt").write_text("b\n\na \n")
    (root / "set/mine.txt").write_text("\ufeffc\n", encoding="utf-8")
    register(
        voc_name="{FORMAT: voc, ROOT: set, CLASSES: [cat], SPLIT: val}",
        voc_path="{FORMAT: voc, ROOT: set, CLASSES: [cat], SPLIT: mine.txt}",
        voc_absolute=f"{{FORMAT: voc, ROOT: set, CLASSES: [cat], SPLIT: {root}/set/mine.txt}}",
        voc_all="{FORMAT: voc, ROOT: set, CLASSES: [cat]}",
    )

    def ids(name):
        return [record["image_id"] for record in DatasetCatalog.get(name)]

    assert ids("voc_name") == ["b", "a"]
    assert ids("voc_path") == ids("voc_absolute") == ["c"]
    assert ids("voc_all") == ["a", "b", "c"]


def test_images_in_subfolders(write_voc, register, root):
    for folder in ("JPEGImages", "Annotations"):
        (root / "set" / folder / "sub").mkdir(parents=True)
    write_voc("a", size=(9, 9))
    write_voc("sub/a")
    (root / "set/ImageSets/Main/all.txt").write_text("a\nsub/a")
    register(voc_sub="{FORMAT: voc, ROOT: set, CLASSES: [cat], SPLIT: all}")
    a, sub = DatasetCatalog.get("voc_sub")
    assert a["file_name"].endswith("/JPEGImages/a.jpg")
    assert sub["file_name"].endswith("/JPEGImages/sub/a.jpg")
    assert sub["image_id"] == "sub/a"


def test_images_and_annotations_in_one_folder(write_voc, register, root):
    xml = write_voc("a.v2", suffix=".png")
    xml.rename(root / "set/JPEGImages/a.v2.xml")
    register(
        voc_flat="{FORMAT: voc, ROOT: set/JPEGImages, IMAGES: '', ANNOTATIONS: ., CLASSES: [c]}"
    )
    (record,) = DatasetCatalog.get("voc_flat")
    assert record["file_name"] == str(root / "set/JPEGImages/a.v2.png")


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png", ".bmp", ".tif", ".webp"])
def test_any_image_suffix(write_voc, register, suffix):
    write_voc("a", suffix=suffix, header="<filename>another.jpg</filename>", size=(33, 44))
    register(voc_suffix=VOC)
    (record,) = DatasetCatalog.get("voc_suffix")
    assert record["file_name"].endswith(f"/a{suffix}")
    assert (record["width"], record["height"]) == (33, 44), "read from the image's header"


def test_filename_decides_between_images_of_one_stem(write_voc, register):
    write_voc("a", suffix=".jpg")
    xml = write_voc("a", suffix=".png")
    register(voc_ambiguous=VOC)
    with pytest.raises(ValueError, match=re.escape(f"{xml}: a.jpg, a.png in ")):
        DatasetCatalog.get("voc_ambiguous")
    write_voc("a", header="<filename>C:\\labels\\a.png</filename>", suffix="")
    assert DatasetCatalog.get("voc_ambiguous")[0]["file_name"].endswith("/a.png")


def test_filename_finds_an_image_of_another_stem(write_voc, register, root):
    write_voc("a", header="<filename>photo one.jpg</filename>", suffix="")
    Image.new("RGB", (5, 6)).save(root / "set/JPEGImages/photo one.jpg")
    register(voc_filename=VOC)
    (record,) = DatasetCatalog.get("voc_filename")
    assert record["file_name"].endswith("/photo one.jpg")
    assert (record["image_id"], record["width"], record["height"]) == ("a", 5, 6)


def test_size_from_the_header_is_turned_by_exif(write_voc, register, root):
    write_voc("a", header="<size><width>0</width><height>0</height></size>", suffix="")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (60, 40)).save(root / "set/JPEGImages/a.jpg", exif=exif)
    register(voc_exif=VOC)
    (record,) = DatasetCatalog.get("voc_exif")
    assert (record["width"], record["height"]) == (40, 60)


def test_odd_boxes_are_counted_and_listed(write_voc, voc_object, register, warnings):
    inside, zero, beyond = (1, 1, 9, 9), (10, 10, 9, 20), (0, 31, 61, 50)
    write_voc("a", voc_object("cat", inside) + voc_object("cat", zero))
    write_voc("b", voc_object("dog", beyond) + voc_object("dog", (70, 1, 80, 9)))
    difficult = voc_object("dog", inside, "<difficult>1</difficult>")
    for stem in "cdefgh":
        write_voc(stem, difficult + voc_object("dog", inside, "<difficult/>"))
    register(voc_odd=VOC)
    a, b, *others = DatasetCatalog.get("voc_odd")
    assert [x["bbox"] for x in a["annotations"]] == [[0, 0, 9, 9]]
    assert [x["bbox"] for x in b["annotations"]] == [[0, 30, 60, 40]]
    assert [[x["difficult"] for x in o["annotations"]] for o in others] == [[1, 0]] * 6
    expected = [
        "voc_odd: 2 boxes without area inside the image, dropped: a.xml, b.xml",
        "voc_odd: 1 box reaching beyond the image, clipped to it: b.xml",
        "voc_odd: 6 objects marked difficult (VOC AP ignores them, and training does with "
        "INPUT.DROP_DIFFICULT): "
        "c.xml, d.xml, e.xml, f.xml, g.xml and 1 other",
    ]
    assert warnings() == expected
    DatasetCatalog.get("voc_odd")
    assert warnings() == expected, "reported once"


GOOD = "<object><name>cat</name><bndbox>{}</bndbox></object>"
CORNERS = "<xmin>1</xmin><ymin>1</ymin><ymax>9</ymax>"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ("<object>", "not well-formed XML"),
        ("<object><name>cat</name></object>", "an object of class cat has no <bndbox>"),
        (
            "<object><name>cow</name></object>",
            "an object has the class 'cow', unknown to CLASSES cat, dog",
        ),
        ("<object/>", "an object has no <name>"),
        (GOOD.format(CORNERS), "<xmax> in <bndbox> must be a finite number, got None"),
        (GOOD.format(CORNERS + "<xmax>x</xmax>"), "must be a finite number, got 'x'"),
        (GOOD.format(CORNERS + "<xmax>nan</xmax>"), "must be a finite number, got 'nan'"),
        (GOOD.format(CORNERS + "<xmax>1e999</xmax>"), "must be a finite number, got '1e999'"),
        (
            GOOD.format(CORNERS + "<xmax>9</xmax>").replace(
                "<bndbox>", "<difficult>x</difficult><bndbox>"
            ),
            "<difficult> in <object> must be a finite number, got 'x'",
        ),
    ],
)
def test_bad_annotation_names_its_file(write_voc, register, objects, message):
    write_voc("fine", GOOD.format(CORNERS + "<xmax>9</xmax>"))
    xml = write_voc("zz", objects)
    register(voc_bad=VOC)
    with pytest.raises(ValueError, match=f"^{re.escape(str(xml))}: .*{re.escape(message)}"):
        DatasetCatalog.get("voc_bad")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html></html>", "expected <annotation> at the top, got <html>"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "not well-formed XML"),
    ],
)
def test_other_files_are_refused(write_voc, register, content, message):
    xml = write_voc("a")
    xml.write_text(content)
    register(voc_other=VOC)
    with pytest.raises(ValueError, match=f"^{xml}: {message}"):
        DatasetCatalog.get("voc_other")


def test_broken_image_without_size_is_named(write_voc, register, root):
    write_voc("a", header="", suffix="")
    image = root / "set/JPEGImages/a.jpg"
    image.write_text("no image")
    register(voc_broken=VOC)
    with pytest.raises(ValueError, match=f"{image}: not a readable image"):
        DatasetCatalog.get("voc_broken")


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ("ROOT: nowhere", r"nowhere/Annotations: no such folder, from ANNOTATIONS.*now {root}$"),
        ("ROOT: set, ANNOTATIONS: xml", r"set/xml: no such folder, from ANNOTATIONS"),
        ("ROOT: set, IMAGES: pictures", r"set/pictures: no such folder, from IMAGES"),
        ("ROOT: set, SPLIT: tset", r"set/ImageSets/Main/tset.txt: no such file, from SPLIT"),
        ("ROOT: set, SPLIT: other", r"Annotations/b.xml: no such file, from line 2 of .*other.txt"),
        ("ROOT: set, SPLIT: imageless", r"Annotations/c.xml: no image c\.\* in .*/set/JPEGImages"),
    ],
)
def test_wrong_path_is_named(write_voc, register, root, fields, missing):
    write_voc("a")
    write_voc("c", suffix="")
    (root / "set/ImageSets/Main/other.txt").write_text("a\nb\n")
    (root / "set/ImageSets/Main/imageless.txt").write_text("a\nc\n")
    register(voc_wrong=f"{{FORMAT: voc, {fields}, CLASSES: [cat]}}")
    with pytest.raises(FileNotFoundError, match=missing.format(root=root)):
        DatasetCatalog.get("voc_wrong")


def test_empty_and_repeating_splits(write_voc, register, root):
    write_voc("a").unlink()
    register(
        voc_none="{FORMAT: voc, ROOT: set, CLASSES: [cat]}",
        voc_empty="{FORMAT: voc, ROOT: set, CLASSES: [cat], SPLIT: empty}",
        voc_twice="{FORMAT: voc, ROOT: set, CLASSES: [cat], SPLIT: twice}",
    )
    (root / "set/ImageSets/Main/empty.txt").write_text("\n \n")
    (root / "set/ImageSets/Main/twice.txt").write_text("a\n\na\n")
    with pytest.raises(ValueError, match=r"set/Annotations: no \.xml file found"):
        DatasetCatalog.get("voc_none")
    with pytest.raises(ValueError, match=r"Main/empty\.txt: this split lists no image"):
        DatasetCatalog.get("voc_empty")
    with pytest.raises(ValueError, match=r"Main/twice\.txt: line 3 lists a a second time"):
        DatasetCatalog.get("voc_twice")
