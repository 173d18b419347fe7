import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from d2_deformable.data.table import read_table

CSV = "{FORMAT: csv, ROOT: set, ANNOTATIONS: boxes.csv}"
SPLIT = CSV.replace("}", ", CLASSES: [cat, dog], SPLIT: %s}")


@pytest.fixture
def write_csv(root):
    """Write set/boxes.csv, and images of 60 x 40 pixels; return the path of the table."""

    def write(text, images=("a.jpg",)):
        for name in images:
            image = root / "set" / name
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40)).save(image)
        file = root / "set/boxes.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8-sig"))
        return file

    return write


def objects(name):
    """[(image_id, [(class name, box), ...]), ...] of a data set."""
    dicts, meta = DatasetCatalog.get(name), MetadataCatalog.get(name)
    return [
        (
            record["image_id"],
            [(meta.thing_classes[a["category_id"]], a["bbox"]) for a in record["annotations"]],
        )
        for record in dicts
    ]


def test_rows_become_records(write_csv, register, root):
    write_csv("a.jpg,0,5,60,40,dog\nb.jpg,1.5,2,3,4,cat\na.jpg,1,1,9,9,cat\n", ("a.jpg", "b.jpg"))
    register(csv_literal=CSV)
    first, second = DatasetCatalog.get("csv_literal")
    common = {"bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
    assert first == {
        "file_name": str(root / "set/a.jpg"),
        "image_id": "a.jpg",
        "width": 60,
        "height": 40,
        "annotations": [
            {"bbox": [0, 5, 60, 40], "category_id": 1, **common},
            {"bbox": [1, 1, 9, 9], "category_id": 0, **common},
        ],
    }
    assert second["annotations"] == [{"bbox": [1.5, 2, 3, 4], "category_id": 0, **common}]
    meta = MetadataCatalog.get("csv_literal")
    assert (meta.thing_classes, meta.evaluator_type) == (["cat", "dog"], "coco"), "sorted"


@pytest.mark.parametrize(
    "text",
    [
        "file,x0,y0,x1,y1,class\na.jpg,1,2,3,4,cat",
        "FileName,Width,Height,Class,XMin,YMin,XMax,YMax\r\na.jpg,60,40,cat,1,2,3,4\r\n",
        "class;path;x1;y1;x2;y2\n\ncat;./a.jpg;1;2;3;4\n",
        '"image"\t"x_min"\t"y_min"\t"x_max"\t"y_max"\t"label"\n"a.jpg"\t1\t2\t3\t4\t"cat"\n',
        " a.jpg , 1, 2, 3, 4, cat \n",
        "\n\npath;x1;y1;x2;y2;class\na.jpg;1;2;3;4;cat\n",
    ],
)
def test_headers_and_separators(write_csv, register, text):
    write_csv(text)
    register(csv_header=CSV)
    assert objects("csv_header") == [("a.jpg", [("cat", [1, 2, 3, 4])])]


def test_quoted_fields(write_csv, register):
    write_csv('"a, b.jpg",1,2,3,4,"a ""big"" cat, black"\n', ("a, b.jpg",))
    register(csv_quoted=CSV)
    assert objects("csv_quoted") == [("a, b.jpg", [('a "big" cat, black', [1, 2, 3, 4])])]


def test_classes_and_folder_of_images(write_csv, register):
    write_csv("sub\\a.jpg,1,2,3,4,10\n", ("pictures/sub/a.jpg",))
    register(csv_classes=CSV.replace("}", ", IMAGES: pictures, CLASSES: [9, 10]}"))
    assert objects("csv_classes") == [("sub/a.jpg", [("10", [1, 2, 3, 4])])]
    assert MetadataCatalog.get("csv_classes").thing_classes == ["9", "10"]


def test_images_without_objects(write_csv, register, root):
    images = ("p/a.jpg", "p/b.jpg", "p/c.jpg", "d.jpg")
    write_csv("p/b.jpg,1,2,3,4,cat\nd.jpg,1,2,3,4,dog\np/c.jpg,,,,,\np/a.jpg\n", images)
    (root / "set/some.txt").write_text("d.jpg\np/a.jpg\n")
    register(csv_rows=CSV, csv_list=SPLIT % "some.txt", csv_folder=SPLIT % "p")
    cat, dog = [("cat", [1, 2, 3, 4])], [("dog", [1, 2, 3, 4])]
    assert objects("csv_rows") == [
        ("p/b.jpg", cat),
        ("d.jpg", dog),
        ("p/c.jpg", []),
        ("p/a.jpg", []),
    ]
    assert objects("csv_list") == [("d.jpg", dog), ("p/a.jpg", [])]
    assert objects("csv_folder") == [("p/a.jpg", []), ("p/b.jpg", cat), ("p/c.jpg", [])]


def test_without_classes_every_split_numbers_them_alike(write_csv, register, root):
    write_csv("a.jpg,1,2,3,4,dog\nb.jpg,1,2,3,4,cat\n", ("a.jpg", "b.jpg"))
    (root / "set/one.txt").write_text("a.jpg")
    register(csv_part=CSV.replace("}", ", SPLIT: one.txt}"))
    assert DatasetCatalog.get("csv_part")[0]["annotations"][0]["category_id"] == 1


def test_odd_boxes_are_counted(write_csv, register, warnings):
    write_csv("a.jpg,5,5,5,9,cat\na.jpg,-3,0,10,10,cat\n")
    register(csv_odd=CSV)
    assert objects("csv_odd") == [("a.jpg", [("cat", [0, 0, 10, 10])])]
    assert warnings() == [
        "csv_odd: 1 box without area inside the image, dropped: a.jpg",
        "csv_odd: 1 box reaching beyond the image, clipped to it: a.jpg",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "a.jpg,1,2,3,x,cat",
            "line 2 needs finite numbers as x0, y0, x1, y1, got '1', '2', '3', 'x'",
        ),
        ("a.jpg,1,2,3,nan,cat", "line 2 needs finite numbers"),
        ("a.jpg,1,2,3,,cat", "line 2 needs finite numbers"),
        ("a.jpg,1,2,3,4,", "line 2 names no class"),
        (",1,2,3,4,cat", "line 2 names no file"),
        ("a.jpg,1,2,3,4", "line 2 has 5 columns, expected 6"),
        ("a.jpg,1,2,3,4,cat,black", "line 2 has 7 columns, expected 6; quote a name"),
        ("a.jpg,1,2,3,4,cow", "line 2 has the class 'cow', unknown to CLASSES cat, dog. Add it"),
        ('a.jpg,1,2,3,4,"cow', "line 2 is no row of a table"),
    ],
)
def test_bad_row_is_named(write_csv, register, row, message):
    file = write_csv(f"a.jpg,1,2,3,4,cat\n{row}\n")
    register(csv_bad=CSV.replace("}", ", CLASSES: [cat, dog]}"))
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {message}')}"):
        DatasetCatalog.get("csv_bad")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no row"),
        ("file,x0,y0,x1,y1,class\n", "holds no row"),
        ("file,x,y,w,h,class\na.jpg,1,2,3,4,cat\n", "line 1 is neither a box nor a header"),
        (b"a.jpg,1,2,3,4,caf\xe9\n", "not a text file in UTF-8"),
    ],
)
def test_another_table_is_refused(write_csv, register, text, message):
    file = write_csv(text)
    register(csv_other=CSV)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {message}')}"):
        DatasetCatalog.get("csv_other")


@pytest.mark.parametrize(
    ("fields", "error", "missing"),
    [
        ("ANNOTATIONS: b.csv", FileNotFoundError, "set/b.csv: no such file, from ANNOTATIONS"),
        ("IMAGES: p", FileNotFoundError, "set/p: no such folder, from IMAGES"),
        (
            "CLASSES: [cat]",
            FileNotFoundError,
            "set/b.jpg: no such file, from IMAGES and .*: line 2",
        ),
        ("SPLIT: s.txt", FileNotFoundError, "set/s.txt: no such file, from SPLIT"),
        (
            "SPLIT: none.txt",
            FileNotFoundError,
            "set/c.jpg: no such file, from line 1 of .*none.txt",
        ),
        ("SPLIT: empty", ValueError, "set/empty: holds no image, from SPLIT"),
        ("IMAGES: empty, SPLIT: .", ValueError, "set: must lie in IMAGES .*/set/empty, from SPLIT"),
    ],
)
def test_wrong_path_is_named(write_csv, register, root, fields, error, missing):
    write_csv("a.jpg,1,2,3,4,cat\nb.jpg,1,2,3,4,cat\n")
    (root / "set/none.txt").write_text("c.jpg")
    (root / "set/empty").mkdir()
    table = "" if "ANNOTATIONS" in fields else "ANNOTATIONS: boxes.csv, "
    register(csv_wrong=f"{{FORMAT: csv, ROOT: set, {table}{fields}}}")
    with pytest.raises(error, match=missing):
        DatasetCatalog.get("csv_wrong")


def test_annotations_are_needed(register):
    with pytest.raises(ValueError, match="FORMAT csv needs ANNOTATIONS, the path of its table"):
        register(csv_none="{FORMAT: csv, ROOT: set}")


def test_the_separator_line_of_excel(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"sep=;\r\nfile;x0;y0;x1;y1;class\r\na.jpg;1;2;3;4;bolt\r\n")
    (row,) = read_table(tmp_path / "a.csv")
    assert (row.file, row.box, row.label) == ("a.jpg", (1, 2, 3, 4), "bolt")
    assert row.here.endswith("line 3")
