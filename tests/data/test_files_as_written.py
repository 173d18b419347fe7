"""Text, names and suffixes of files as tools and operating systems write them."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_deformable.data.checks import AnnotationReport, read_text
from d2_deformable.data.custom import load_reported
from d2_deformable.data.discover import discover, name_splits
from d2_deformable.data.images import in_any_case
from drawn import CLASSES, write_drawn

FORMATS = ("voc", "coco", "yolo", "csv", "mask")
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
TEXT = (".xml", ".json", ".txt", ".csv", ".yaml")
IMAGES = (".jpg", ".png")


def load(register, root, kind):
    """[(name of the image, classes of its objects)] of a folder, found as `data check` does."""
    fields = discover(root, kind)
    names = name_splits(root, fields)
    register(**{name: str(f) for name, f in names.items()})
    reports = {name: AnnotationReport() for name in names}
    records = [r for name in names for r in load_reported(name, reports[name])]
    assert not any(report.files["unlabelled"] for report in reports.values())
    return [
        (r["file_name"].rpartition("/")[2].lower(), [a["category_id"] for a in r["annotations"]])
        if "annotations" in r
        else (r["file_name"].rpartition("/")[2].lower(), [])
        for r in records
    ]


@pytest.fixture
def expected(register, tmp_path):
    return lambda kind: load(register, write_drawn(tmp_path / f"plain_{kind}", kind, SPLITS), kind)


SPLITS = {"train": 2, "val": 1}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_encoding_and_line_end(register, tmp_path, expected, kind, encoding):
    root = write_drawn(tmp_path / "written", kind, SPLITS)
    for file in root.rglob("*"):
        if file.suffix in TEXT:
            text = file.read_text().replace("\n", "\r\n")
            if file.suffix == ".xml":
                text = f'<?xml version="1.0" encoding="utf-8"?>\r\n{text}'
            file.write_bytes(text.encode(encoding))
    assert load(register, root, kind) == expected(kind)


@pytest.mark.parametrize("change", [str.upper, str.title])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_case_of_suffixes(register, tmp_path, expected, kind, change):
    root = write_drawn(tmp_path / "written", kind, SPLITS)
    renamed = {}
    for file in sorted(root.rglob("*")):
        listed = kind in ("coco", "csv") and file.suffix in IMAGES  # by their full names
        if file.suffix in (".xml", ".png", ".jpg", ".txt", ".json") and not listed:
            if file.name in ("train.txt", "val.txt", "classes.txt"):
                continue
            renamed[file] = file.rename(file.with_suffix(change(file.suffix)))
    assert load(register, root, kind) == expected(kind)
    assert renamed or kind == "csv"


@pytest.mark.parametrize("kind", FORMATS)
def test_hidden_files(register, tmp_path, expected, kind):
    root = write_drawn(tmp_path / "written", kind, SPLITS)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\26\7 of macOS")
        file.with_name(".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        copies = file.parent / ".ipynb_checkpoints"
        copies.mkdir(exist_ok=True)
        (copies / f"{file.stem}-checkpoint{file.suffix}").write_bytes(file.read_bytes())
    assert load(register, root, kind) == expected(kind)


@pytest.mark.parametrize("kind", ["voc", "mask"])
def test_without_a_split_every_file_counts_once(register, tmp_path, kind):
    root = write_drawn(tmp_path / "set", kind, {"all": 3})
    folder, suffix = ("Annotations", ".xml") if kind == "voc" else ("masks", ".png")
    (root / folder / f"all_1{suffix}").rename(root / folder / f"all_1{suffix.upper()}")
    (root / folder / f"._all_0{suffix}").write_bytes(b"\0")
    classes = list(CLASSES) if kind == "voc" else ["background", *CLASSES]
    register(as_written=f"{{FORMAT: {kind}, ROOT: set, CLASSES: {classes}}}")
    assert [r["image_id"] for r in DatasetCatalog.get("as_written")] == ["all_0", "all_1", "all_2"]
    twice = root / folder / f"all_1{suffix}"
    twice.write_bytes((root / folder / f"all_1{suffix.upper()}").read_bytes())
    with pytest.raises(ValueError, match=rf"{folder}: has two files all_1{suffix}, .*keep one"):
        DatasetCatalog.get("as_written")


def test_text_in_another_encoding_is_named(register, write_voc, voc_object, root):
    write_voc("a", voc_object("cat", (1, 1, 9, 9)))
    split, names = root / "set/ImageSets/Main/train.txt", root / "set/names.txt"
    for file in (split, names):
        file.write_bytes("gr\xfcn".encode("latin-1"))
    register(latin="{FORMAT: voc, ROOT: set, CLASSES: [cat], SPLIT: train}")
    with pytest.raises(ValueError, match=f"^{split}: not a text file in UTF-8 .*Save it in UTF-8"):
        DatasetCatalog.get("latin")
    message = f"^DATASETS.CUSTOM.latin_names.CLASSES: {names}: not a text file in UTF-8"
    with pytest.raises(ValueError, match=message):
        register(latin_names="{FORMAT: voc, ROOT: set, CLASSES: names.txt}")


def test_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(tmp_path / "a.txt") == "a\nb\nc\n"


def test_any_case(tmp_path):
    (tmp_path / "a.b.Png").touch()
    assert in_any_case(tmp_path / "a.b.png") == tmp_path / "a.b.Png"
    assert in_any_case(tmp_path / "c.png") == tmp_path / "c.png"


def test_a_changed_data_set_is_loaded_anew(register, tmp_path):
    """With the classes of its file, which the catalog's metadata keeps."""
    root = write_drawn(tmp_path / "set", "csv", {"all": 2})
    fields = '{"FORMAT": "csv", "ROOT": "set", "IMAGES": "images", "ANNOTATIONS": "all.csv"}'
    register(changed=fields)
    before = DatasetCatalog.get("changed")
    file = root / "all.csv"
    file.write_text(file.read_text().replace("nut", "screw").replace("all_1.jpg", "all_0.jpg"))
    after = DatasetCatalog.get("changed")
    assert MetadataCatalog.get("changed").thing_classes == ["bolt", "screw"]
    assert (len(before), len(after)) == (2, 1)
    register(changed=fields.replace("}", ', "CLASSES": ["screw", "bolt"]}'))
    assert MetadataCatalog.get("changed").thing_classes == ["screw", "bolt"]
    DatasetCatalog.get("changed")


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_changed_classes(register, tmp_path, kind):
    root = write_drawn(tmp_path / "set", kind, {"all": 2})
    fields = next(iter(discover(root, kind).values())) | {"CLASSES": None}
    register(changed_classes=str({k: v for k, v in fields.items() if v is not None}))
    DatasetCatalog.get("changed_classes")
    assert "nut" in MetadataCatalog.get("changed_classes").thing_classes
    file = root / fields["ANNOTATIONS"]
    file.write_text(file.read_text().replace("nut", "screw"))
    DatasetCatalog.get("changed_classes")
    assert "screw" in MetadataCatalog.get("changed_classes").thing_classes


@pytest.mark.parametrize("encoding", ["gb2312", "shift_jis", "iso-8859-1", "utf-8"])
def test_xml_in_the_encoding_that_it_declares(register, write_voc, voc_object, encoding):
    label = "\xe4rger" if encoding == "iso-8859-1" else "\u732b"  # a cat
    xml = write_voc("a", voc_object(label, (1, 1, 9, 9)))
    text = f'\n<?xml version="1.0" encoding="{encoding}"?>\n{xml.read_text()}'
    xml.write_bytes(text.encode(encoding))
    register(declared=f"{{FORMAT: voc, ROOT: set, CLASSES: [{label}]}}")
    assert len(DatasetCatalog.get("declared")[0]["annotations"]) == 1
    if encoding == "utf-8":  # .NET declares UTF-16 whatever the encoding of the file
        xml.write_bytes(text.replace(encoding, "utf-16").encode())
        assert len(DatasetCatalog.get("declared")[0]["annotations"]) == 1
    xml.write_bytes(text.replace(encoding, "no-such-code").encode(encoding))
    with pytest.raises(ValueError, match=f"{xml}: not well-formed XML .*no-such-code"):
        DatasetCatalog.get("declared")
