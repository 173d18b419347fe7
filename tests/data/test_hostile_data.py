"""Data sets that are made to read other files, to fill the memory, or to take hours."""

import json
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from d2_deformable.data.coco import COCOFormat
from d2_deformable.data.discover import discover
from d2_deformable.data.masks import MaskFormat, read_mask
from d2_deformable.data.table import CSVFormat, read_table
from d2_deformable.data.voc import VOCFormat, read_xml
from d2_deformable.data.yolo import YOLOFormat
from d2_deformable.utils.pixels import image_size, read_image

XML = (
    "<annotation>{}<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


@pytest.fixture
def root(tmp_path):
    """A data set's folder, with files of each kind inside and outside."""
    for folder in (tmp_path, tmp_path / "set"):
        for name in ("images", "labels", "masks"):
            (folder / name).mkdir(parents=True)
        for stem in ("a", "b"):
            Image.new("RGB", (20, 10)).save(folder / f"images/{stem}.png")
            (folder / f"labels/{stem}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
            (folder / f"labels/{stem}.xml").write_text(XML.format(""))
            Image.new("L", (20, 10)).save(folder / f"masks/{stem}.png")
    return tmp_path / "set"


def coco(root, file_name="a.png", size=(20, 10), **fields):
    image = {"id": 7, "file_name": file_name, "width": size[0], "height": size[1]}
    one = {"id": 5, "image_id": 7, "category_id": 1, "bbox": [1, 1, 5, 5], **fields}
    content = {"images": [image], "annotations": [one], "categories": [{"id": 1, "name": "cat"}]}
    (root / "all.json").write_text(json.dumps(content))
    return COCOFormat(root, "images", "all.json")


def csv(root, image):
    (root / "all.csv").write_text(f"{image},1,1,5,5,cat\n")
    return CSVFormat(root, "images", "all.csv")


def listed_csv(root, image):
    csv(root, "a.png")
    (root / "list.txt").write_text(f"{image}\n")
    return CSVFormat(root, "images", "all.csv", split="list.txt")


def voc(root, image):
    (root / "list.txt").write_text(f"{image.removesuffix('.png')}\n")
    return VOCFormat(root, "images", "labels", "list.txt", ("cat",))


def mask(root, image):
    (root / "list.txt").write_text(f"{image.removesuffix('.png')}\n")
    return MaskFormat(root, "images", "masks", "list.txt", ("cat",))


def yolo(root, image):
    (root / "data.yaml").write_text(f"train: {json.dumps(f'images/{image}')}\nnames: [cat]\n")
    return YOLOFormat(root)


def listed_yolo(root, image):
    (root / "list.txt").write_text(f"images/{image}\n")
    return YOLOFormat(root, "", "list.txt", ("cat",))


READERS = (coco, csv, listed_csv, voc, mask, listed_yolo)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a.png", "../images/a.png", "./a.png", "{}/set/images/a.png"])
def test_names_inside_the_data_set(root, reader, name):
    name = name.format(root.parent)
    if name.startswith("/") and reader is mask or "set" in name and reader in (voc, listed_yolo):
        pytest.skip("a stem is a name in two folders; a list of YOLO is relative here")
    if name.startswith("../") and reader is not listed_yolo:
        name = "x/../a.png"
    (record,) = reader(root, name).load("x")
    assert Path(record["file_name"]).resolve() == root / "images/a.png"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "name", ["../../images/b.png", "x/../../../images/b.png", "{}/images/b.png"]
)
def test_names_that_lead_out(root, reader, name):
    name = name.format(root.parent)
    (root / "images/x").mkdir()
    if name.startswith("/") and reader is listed_yolo:
        (root / "list.txt").write_text(name)
        form = YOLOFormat(root, "", "list.txt", ("cat",))
    else:
        form = reader(root, name)
    with pytest.raises(ValueError, match="expected a path inside .*/set.*Correct it, or set") as at:
        form.load("x")
    assert any(f"{root}/{source}" in str(at.value) for source in ("all.", "list.txt", "labels"))
    assert "\n" not in str(at.value)


@pytest.mark.parametrize("path", ["..", "{}"])
@pytest.mark.parametrize("train", ["images", "[images]", "list.txt"])
def test_a_data_yaml_that_leads_out(root, path, train):
    """A folder of another machine is passed over; one that exists elsewhere is not read."""
    path = path.format(root.parent)
    for folder in (root, root.parent):
        (folder / "list.txt").write_text("images/a.png\n")
    (root / "data.yaml").write_text(f"path: {path}\ntrain: {train}\nnames: [cat]\n")
    for record in YOLOFormat(root).load("x"):
        assert Path(record["file_name"]).resolve().is_relative_to(root)
    for text in (f"path: {path}\ntrain: masks/..", f"train: {root.parent}/images"):
        (root / "data.yaml").write_text(f"{text}\nnames: [cat]\n")
        (root / "masks").rename(root / f"gone{time.monotonic_ns()}") if "masks" in text else None
        with pytest.raises((ValueError, FileNotFoundError), match="ROOT|no such folder"):
            YOLOFormat(root).load("x")
        (root / "masks").mkdir(exist_ok=True)


def test_a_name_of_voc_is_no_path(root):
    (root / "labels/c.xml").write_text(XML.format("<filename>../../images/b.png</filename>"))
    (root / "list.txt").write_text("c\n")
    (record,) = VOCFormat(root, "images", "labels", "list.txt", ("cat",)).load("x")
    assert record["file_name"] == str(root / "images/b.png")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", [f"{'x' * 300}.png", "x\0y.png", "/", ".", "\ud800.png"])
def test_impossible_names(root, reader, name):
    if "\ud800" in name and reader is not coco:
        pytest.skip("only JSON can write it")
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        reader(root, name).load("x")
    assert f"{root}/" in str(error.value) and "\n" not in str(error.value)


def test_names_of_classes_that_cannot_be_written(root):
    form = coco(root)
    text = (root / "all.json").read_text()
    (root / "all.json").write_text(text.replace('"cat"', '"\\ud800"'))
    with pytest.raises(ValueError, match="all.json: every category needs a unique name"):
        form.load("x")
    (root / "data.yaml").write_text('train: images\nnames: ["\\ud800"]\n')
    with pytest.raises(ValueError, match="data.yaml: (names must hold text|not YAML)"):
        YOLOFormat(root).load("x")


def test_a_folder_is_found_by_names_inside_it_only(root):
    coco(root, "../../images/b.png")
    with pytest.raises(FileNotFoundError, match="no folder under .* holds its images"):
        discover(root, "coco")


def bomb(file: Path, width: int, height: int) -> Path:
    """A black PNG of `width` x `height` grey pixels, compressed."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    compress, row = zlib.compressobj(9), bytes(width + 1)
    pixels = b"".join(compress.compress(row) for _ in range(height)) + compress.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return file


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 1000), (20_000, 9000)])
def test_images_of_many_pixels(root, size, monkeypatch):
    file = bomb(root / "images/a.png", *size)
    sentence = f"{file}: .*{size[0] * size[1]:,} pixels; expected at most 89,478,485"
    monkeypatch.setattr(Image.Image, "load", None)  # nothing is decoded
    for read, kind in ((image_size, ValueError), (read_image, OSError), (read_mask, OSError)):
        with pytest.raises(kind, match=sentence):
            read(file)
    with pytest.raises(ValueError, match=sentence):
        csv(root, "a.png").load("x")


def test_a_long_image_is_none(root):
    assert read_image(bomb(root / "long.png", 20_000, 1)).shape == (1, 20_000, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixels_may_be_more_if_pillows_limit_is(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 199)
    with pytest.raises(ValueError, match="most 199"):
        image_size(root / "images/a.png")
    for limit in (200, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert image_size(root / "images/a.png") == (20, 10)


def test_formats_that_run_programs_are_no_images(root):
    Image.new("RGB", (20, 10)).save(root / "images/a.eps")
    (root / "images/a.eps").rename(root / "images/a.png")
    with pytest.raises(OSError, match="a.png: this image cannot be read: not an image"):
        read_image(root / "images/a.png")


@pytest.mark.parametrize("size", [(10**9, 10**9), (13_000, 13_000), (10**308, 1)])
def test_annotated_sizes_that_no_image_has(root, size):
    shape = {"size": [size[1], size[0]], "counts": [size[0] * size[1]]}
    with pytest.raises(ValueError, match="all.json: image 7: it has .* pixels; expected at most"):
        coco(root, size=size, segmentation=shape).load("x")


@pytest.mark.parametrize(
    "shape",
    [
        {"size": 5, "counts": "0"},
        {"size": [50_000, 50_000], "counts": [2_500_000_000]},
        {"size": [10, 20], "counts": [10**400]},
        {"size": [10, 20], "counts": [float("inf")]},
        {"size": [float("nan"), 20], "counts": "T3l0"},
        {"size": [10, 20], "counts": "ooooooooooo0"},
        [[0, 0, 1e9, 1, 1, 1e9]],
        [[0, 0, 1e308, 1, 1, -1e308]],
        [[0, 0, 19, 9] * 100_000 + [3, 9]],
    ],
)
def test_masks_of_any_size(root, shape):
    """They are left out: pycocotools would take the memory that they claim."""
    (record,) = coco(root, segmentation=shape).load("x")
    (one,) = record["annotations"]
    assert one["bbox"] == [1, 1, 5, 5] and "segmentation" not in one


def test_a_long_outline_within_reason_stays(root):
    polygon = [v for i in range(2000) for v in (i % 20, i % 10)]
    (record,) = coco(root, segmentation=[polygon]).load("x")
    assert len(record["annotations"][0]["segmentation"]) == 1


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6, '{"images": ' + "9" * 10_000 + "}"])
def test_deep_and_long_json(root, text):
    (root / "all.json").write_text(text)
    with pytest.raises(ValueError, match="all.json: not a json file"):
        COCOFormat(root, "images", "all.json").load("x")


@pytest.mark.parametrize(
    "declarations",
    [
        "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "lol"}">' for i in range(10)),
        f'<!ENTITY e9 "{"x" * 100_000}">',
        f'<!ATTLIST x y CDATA "{"x" * 100_000}"> <!ENTITY e9 "">',
        '<!ENTITY e9 SYSTEM "file:///etc/passwd">',
        '<!ENTITY % e9 "x">',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_declarations_of_xml(root, declarations, encoding):
    text = f"<!DOCTYPE annotation [{declarations}]>" + XML.format("<x>&e9;</x>" * 1000)
    (root / "labels/a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match="a.xml: <!(ENTITY|ATTLIST) is refused"):
        read_xml(root / "labels/a.xml")


def test_deep_xml(root):
    (root / "labels/a.xml").write_text("<annotation>" + "<a>" * 10**5 + "</a>" * 10**5)
    with pytest.raises(ValueError, match="a.xml: not well-formed XML"):
        read_xml(root / "labels/a.xml")
    (root / "labels/a.xml").write_text(XML.format("<a>" * 10**5 + "</a>" * 10**5))
    (record, _) = VOCFormat(root, "images", "labels", "", ("cat",)).load("x")
    assert len(record["annotations"]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x]\n"
        + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
        + "names: *a39\ntrain: *a39\n",
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)),
        "names: &a [*a]\n",
        "names: !!int ''\n",
        "names: !!timestamp x\n",
        "train: 2001-99-99\n",
        "names: !!python/object/apply:os.system [true]\n",
        "[" * 10_000,
    ],
)
def test_a_data_yaml_that_grows(root, text):
    (root / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match="data.yaml: not YAML") as error:
        YOLOFormat(root).load("x")
    assert len(str(error.value)) < 500


def test_aliases_of_a_data_yaml_are_no_fault(root):
    (root / "data.yaml").write_text("train: &t [images]\nval: *t\nnames: [cat]\n")
    assert len(YOLOFormat(root).load("x")) == 2


def test_long_fields_of_a_table(root):
    (root / "all.csv").write_text(f"a.png,1,1,5,5,{'x' * 200_000}\n")
    with pytest.raises(ValueError, match="all.csv: line 1 is no row of a table"):
        read_table(root / "all.csv")
    (root / "all.csv").write_text(f"a.png,1,1,5,5,cat\na.png,{'x' * 100_000},1,5,5,cat\n")
    with pytest.raises(ValueError, match="all.csv: line 2 needs finite numbers") as error:
        read_table(root / "all.csv")
    assert len(str(error.value)) < 500


def test_time_is_linear_in_classes(root):
    """A number of classes and names that took minutes when each was searched for in a list."""
    number = 20_000
    form = coco(root)
    content = json.loads((root / "all.json").read_text())
    (one,) = content["annotations"]
    content["annotations"] = [{**one, "category_id": i, "id": i} for i in range(number)]
    categories = [{"id": i, "name": f"c{i}"} for i in range(number)]
    unused = [{**c, "id": number + c["id"]} for c in categories]
    (root / "all.json").write_text(json.dumps({**content, "categories": categories + unused}))
    (root / "all.csv").write_text("".join(f"a.png,1,1,5,5,c{i}\n" for i in range(number)))
    start = time.process_time()
    assert len(form.load("x")[0]["annotations"]) == number
    assert len(CSVFormat(root, "images", "all.csv").load("x")[0]["annotations"]) == number
    assert time.process_time() - start < 15
