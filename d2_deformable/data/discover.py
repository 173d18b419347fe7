"""Find the splits of a folder of labelled images: from ROOT and FORMAT to DATASETS.CUSTOM."""

import os
import re
from pathlib import Path

import numpy as np

from ..utils.paths import leads_out
from ..utils.text import one_line
from .checks import existing, read_names
from .coco_json import read_instances
from .custom import is_foreign
from .images import has_suffix, is_image, visible_files
from .masks import MaskFormat, read_mask
from .part import PARTS
from .table import read_table
from .voc import read_xml
from .yolo import YOLOFormat

# {split: words in a file's or folder's name that mean it}
SPLITS = {"train": "train|training", "val": "val|valid|validation", "test": "test|testing"}

FOLDERS_OF_IMAGES = ("JPEGImages", "images", "imgs", "img", "photos")
FOLDERS_OF_XML = ("Annotations", "annotations", "xml", "labels")
FOLDERS_OF_MASKS = ("masks", "labels", "annotations", "SegmentationClass", "SegmentationClassAug")


def discover(root, kind: str, given: dict | None = None) -> dict[str, dict]:
    """Describe the splits of a folder by the fields of DATASETS.CUSTOM.

    Args:
        root: folder of the data set.
        kind: a FORMAT of labelled images.
        given: fields that are not to be found out, e.g. {"IMAGES": "photos"}. With SPLIT or
            ANNOTATIONS there is only one split.

    Returns:
        {split: fields}; the splits are some of train, val and test, or all.

    Raises:
        FileNotFoundError, ValueError: the folder's layout is not understood; the message says what
            was expected.
    """
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    if kind not in _DISCOVER:
        raise ValueError(f"format {kind}: choose one of {', '.join(_DISCOVER)}")
    given = given or {}
    found = dict(_DISCOVER[kind](root, given))
    order = sorted(found, key=[*SPLITS, "all"].index)
    return {split: {"FORMAT": kind, "ROOT": str(root)} | found[split] | given for split in order}


def train_and_val(splits: dict[str, dict]) -> dict[str, dict]:
    """Choose what to train on and what to test on: {"train": fields, "val": fields}.

    Without a val split, test takes its place; without both, PART divides what there is.
    """
    test = splits.get("val") or splits.get("test")
    if "train" in splits and test:
        return {"train": splits["train"], "val": test}
    whole = next(iter(splits.values()))
    return {part: whole | {"PART": part} for part in PARTS}


def categories_without_objects(splits: dict[str, dict]) -> list[str]:
    """Names in the json files of FORMAT coco that `discover` left out of CLASSES."""
    names = {}
    for fields in splits.values():
        if fields["FORMAT"] == "coco":
            content = read_instances(Path(fields["ROOT"]) / fields["ANNOTATIONS"])
            names |= {c["name"]: c["id"] for c in content["categories"]}
    return [n for n in names if not any(n in fields["CLASSES"] for fields in splits.values())]


def name_splits(root, splits: dict[str, dict]) -> dict[str, dict]:
    """{<folder>_<split>: fields} as DATASETS.CUSTOM has them."""
    stem = re.sub(r"\W+", "_", Path(root).expanduser().absolute().name).strip("_") or "data"
    if any(is_foreign(f"{stem}_{split}") for split in splits):  # e.g. coco_2017_train
        stem = f"my_{stem}"
    return {f"{stem}_{split}": fields for split, fields in splits.items()}


def _split_of(path: Path) -> str:
    """The split that a path under the root names, e.g. annotations/instances_val2017.json."""
    for part in reversed(path.parts):
        for split, words in SPLITS.items():
            if re.search(rf"(?<![a-z])({words})(?![a-z])", part.lower()):
                return split
    return "all"


def _unique(root: Path, files, what: str) -> list[tuple[str, Path]]:
    """[(split, file)]; one file of each split.

    Raises:
        ValueError: there is none, or several of one split.
    """
    found = {}
    for file in sorted(files):
        found.setdefault(_split_of(file.relative_to(root)), []).append(file)
    if not found:
        raise FileNotFoundError(f"{root}: holds no {what}")
    for split, several in found.items():
        if len(several) > 1:
            raise ValueError(
                f"{root}: {', '.join(str(f.relative_to(root)) for f in several)} may all be the "
                f"{what} of the split {split}; name the right one, as ANNOTATIONS"
            )
    return [(split, files[0]) for split, files in found.items()]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _find_images(root: Path, names: list[str], near: Path, given: dict) -> str:
    """Folder under `root` at which the names of images start.

    Args:
        near: the file that holds the names; folders close to it, or of its split, are preferred.
    """
    if "IMAGES" in given:
        return given["IMAGES"]
    sample = names[:: max(1, len(names) // 20)]
    split = _split_of(near.relative_to(root)) if near.is_relative_to(root) else "all"
    folders = {near.parent, root, *root.glob("*"), *root.glob("*/*")}
    first = sample[0]
    folders = [folder for folder in folders if _holds(folder, first)]
    complete = [f for f in folders if all(_holds(f, name) for name in sample)]
    if not complete:
        raise FileNotFoundError(
            f"{near}: no folder under {root} holds its images, such as {one_line(first)}; name it, "
            "as IMAGES"
        )
    complete.sort(key=lambda f: (f != near.parent, _split_of(f.relative_to(root)) != split, str(f)))
    return _relative(complete[0], root)


def _holds(folder: Path, name: str) -> bool:
    return os.path.isfile(folder / name) and not leads_out(folder, name)


def _first_folder(root: Path, names, holds) -> str | None:
    """The first of the folders `names` under root with a file for which `holds` is true."""
    for name in names:
        folder = root / name
        if folder.is_dir() and any(map(holds, visible_files(folder))):
            return name
    return None


def _files(root: Path, *suffixes: str) -> list[Path]:
    """Files with one of these suffixes, in a folder or the folders in it."""
    return [
        path for path in (*root.glob("*"), *root.glob("[!.]*/*")) if has_suffix(path, *suffixes)
    ]


def _is_xml(path: Path) -> bool:
    return has_suffix(path, ".xml")


def _voc(root: Path, given: dict) -> list[tuple[str, dict]]:
    xml = given.get("ANNOTATIONS") or _first_folder(root, (*FOLDERS_OF_XML, "."), _is_xml)
    if xml is None:
        raise FileNotFoundError(f"{root}: holds no .xml file, nor does a folder Annotations in it")
    images = given.get("IMAGES") or _first_folder(root, (*FOLDERS_OF_IMAGES, xml, "."), is_image)
    common = {"IMAGES": images or xml, "ANNOTATIONS": xml}
    files = [path for path in visible_files(root / xml) if _is_xml(path)]
    common["CLASSES"] = given.get("CLASSES") or _voc_classes(files)
    lists = _lists(root, "Main") if "SPLIT" not in given else []
    if lists:
        return [(split, common | {"SPLIT": file}) for split, file in lists]
    folders = sorted({file.parent for file in files})
    if len(folders) == 1 and folders[0] == root / xml:
        return [("all", common)]
    # As Roboflow writes it: one folder for each split, which holds images and XML files.
    splits = _unique(root, folders, "folder of XML files")
    return [
        (split, common | {"IMAGES": _relative(f, root), "ANNOTATIONS": _relative(f, root)})
        for split, f in splits
        if any(map(is_image, f.iterdir()))
    ] or [("all", common)]


def _lists(root: Path, kind: str) -> list[tuple[str, str]]:
    """[(split, its text file under root)] of the files called train.txt, val.txt, ...."""
    for folder in (root / "ImageSets" / kind, root / "ImageSets", root):
        names = ("train", "val", "valid", "validation", "test")
        found = [folder / f"{n}.txt" for n in names if (folder / f"{n}.txt").is_file()]
        if found:
            return [(_split_of(Path(file.name)), _relative(file, root)) for file in found]
    return []


def _voc_classes(files) -> list[str]:
    labels = set()
    for file in files:
        labels.update((name.text or "").strip() for name in read_xml(file).iterfind("object/name"))
    if not labels - {""}:
        raise ValueError(f"none of the {len(files)} XML files, such as {files[0]}, has an object")
    return sorted(labels - {""})


def _coco(root: Path, given: dict) -> list[tuple[str, dict]]:
    if "ANNOTATIONS" in given:
        splits = [("all", root / given["ANNOTATIONS"])]
    else:
        files = _files(root, ".json")
        instances = [file for file in files if file.name.startswith("instances")]
        splits = _unique(root, instances or files, "json in COCO's format")
    found = []
    for split, file in splits:
        content = read_instances(existing(file, "ANNOTATIONS"))
        names = [image["file_name"] for image in content["images"]]
        used = {annotation["category_id"] for annotation in content["annotations"]}
        categories = {c["id"]: c["name"] for c in content["categories"]}
        if names:
            images = _find_images(root, names, file, given)
            fields = {"IMAGES": images, "ANNOTATIONS": _relative(file, root)}
            found.append((split, fields, categories, used))
    if not found:
        raise ValueError(f"{root}: the json files list no image")
    # Some tools add a category without annotations, which would train an output for nothing.
    # `categories_without_objects` names them.
    used = set().union(*(used for *_, used in found))
    categories = {i: name for _, _, of_file, _ in found for i, name in of_file.items()}
    classes = [categories[i] for i in sorted(categories) if i in used]
    return [(split, fields | {"CLASSES": classes}) for split, fields, *_ in found]


def _yolo(root: Path, given: dict) -> list[tuple[str, dict]]:
    """Find splits and fields of a YOLO data set.

    They come from data.yaml, else from classes.txt with list files, folders named after splits, or
    all images.
    """
    if "ANNOTATIONS" in given:
        yamls = [given["ANNOTATIONS"]] if given["ANNOTATIONS"] else []
    else:
        yamls = sorted(f.name for f in root.glob("*") if has_suffix(f, ".yaml", ".yml"))
        yamls = [name for name in yamls if name == "data.yaml"] or yamls
    if len(yamls) > 1:
        raise ValueError(
            f"{root}: {', '.join(yamls)} may all be its data.yaml; name the right one, as "
            "ANNOTATIONS"
        )
    return _yolo_from_yaml(root, yamls[0], given) if yamls else _yolo_from_folders(root, given)


def _yolo_from_yaml(root: Path, yaml: str, given: dict) -> list[tuple[str, dict]]:
    content, classes = YOLOFormat(root, annotations=yaml).content()
    common = {"ANNOTATIONS": yaml, "CLASSES": list(classes)}
    if "SPLIT" in given:
        return [("all", common)]
    names = [("train", "train"), ("val", "val"), ("val", "valid"), ("test", "test")]
    found = [(split, common | {"SPLIT": key}) for split, key in names if content.get(key)]
    if not found:
        raise ValueError(f"{root / yaml}: has none of the splits train, val and test")
    return found


def _yolo_from_folders(root: Path, given: dict) -> list[tuple[str, dict]]:
    names = given.get("CLASSES") or next(
        (n for n in ("classes.txt", "obj.names", "labels/classes.txt") if (root / n).is_file()),
        None,
    )
    if not names:
        raise FileNotFoundError(f"{root}: holds neither a data.yaml nor a classes.txt")
    if isinstance(names, str):
        names = list(read_names(root / names))
    common = {"ANNOTATIONS": "", "CLASSES": names}
    if "SPLIT" in given:
        return [("all", common)]
    if lists := _lists(root, ""):
        return [(split, common | {"SPLIT": file}) for split, file in lists]
    images = _first_folder(root, (*FOLDERS_OF_IMAGES, "."), is_image)
    if images is None:
        raise FileNotFoundError(f"{root}: holds no image")
    folders = [
        f for f in sorted((root / images).iterdir()) if f.is_dir() and not f.name.startswith(".")
    ]
    splits = [(_split_of(Path(f.name)), f) for f in folders]
    if splits and all(split != "all" for split, _ in splits):
        return [(split, common | {"SPLIT": _relative(f, root)}) for split, f in splits]
    return [("all", common | {"SPLIT": images})]


def _csv(root: Path, given: dict) -> list[tuple[str, dict]]:
    if "ANNOTATIONS" in given:
        splits = [("all", root / given["ANNOTATIONS"])]
    else:
        files = _files(root, ".csv")
        files = [file for file in files if file.stem != "classes"]  # names, as RetinaNet reads them
        splits = _unique(root, files, "csv table")
    found, labels = [], set()
    for split, file in splits:
        rows = read_table(existing(file, "ANNOTATIONS"))
        labels.update(row.label for row in rows if row.box)
        names = list(dict.fromkeys(row.file for row in rows))
        images = _find_images(root, names, file, given)
        found.append((split, {"IMAGES": images, "ANNOTATIONS": _relative(file, root)}))
    lists = _lists(root, "") if len(found) == 1 and "SPLIT" not in given else []
    if lists:
        found = [(split, found[0][1] | {"SPLIT": file}) for split, file in lists]
    return [(split, fields | {"CLASSES": sorted(labels)}) for split, fields in found]


def _mask(root: Path, given: dict) -> list[tuple[str, dict]]:
    masks = given.get("MASKS") or _first_folder(
        root, FOLDERS_OF_MASKS, lambda path: has_suffix(path, ".png")
    )
    if masks is None:
        raise FileNotFoundError(
            f"{root}: no folder of masks (.png); expected one called {', '.join(FOLDERS_OF_MASKS)}"
        )
    images = given.get("IMAGES") or _first_folder(root, FOLDERS_OF_IMAGES, is_image)
    if images is None:
        raise FileNotFoundError(
            f"{root}: no folder of images; expected one called {', '.join(FOLDERS_OF_IMAGES)}"
        )
    common = {"IMAGES": images, "MASKS": masks}
    common["CLASSES"] = given.get("CLASSES") or _mask_classes(root, masks, given)
    lists = _lists(root, "Segmentation") if "SPLIT" not in given else []
    return [(split, common | {"SPLIT": file}) for split, file in lists] or [("all", common)]


def _mask_classes(root: Path, masks: str, given: dict) -> list[str]:
    """Names in classes.txt, or one for each index that occurs."""
    for name in ("classes.txt", "labels.txt"):
        if (root / name).is_file():
            return list(read_names(root / name))
    highest, ignore = 0, given.get("IGNORE", MaskFormat.ignore)
    for file in visible_files(root / masks):
        if not has_suffix(file, ".png"):
            continue
        labels = read_mask(file)
        highest = max(highest, int(labels.max(initial=0, where=labels != np.uint8(ignore))))
    return [f"class_{i}" for i in range(highest + 1)]


_DISCOVER = {"voc": _voc, "coco": _coco, "yolo": _yolo, "csv": _csv, "mask": _mask}
