"""User data sets declared in YAML: DATASETS.CUSTOM -> Detectron2's catalogs."""

import logging
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..modeling.meta_arch.predicates import is_dense_detector, is_detector, is_segmentor
from ..utils.text import count
from .checks import AnnotationReport, datasets_root, existing, read_names
from .coco import COCOFormat
from .masks import MaskFormat
from .part import Part
from .sizes import check_sizes
from .table import CSVFormat
from .targets import check_targets
from .voc import VOCFormat
from .warped_shapes import WarpedShapesFormat
from .yolo import YOLOFormat

# A format is a frozen dataclass. Its fields, in capitals, are those of the YAML;
# `load(name, report)` returns Detectron2's dicts, and `metadata()` what is known before loading.
FORMATS = {
    "voc": VOCFormat,
    "coco": COCOFormat,
    "yolo": YOLOFormat,
    "csv": CSVFormat,
    "mask": MaskFormat,
    "warped_shapes": WarpedShapesFormat,
}

Names = tuple[str, ...]

logger = logging.getLogger(__name__)
_registered = {}  # name -> format object


def register_custom_datasets(cfg) -> None:
    """Register every data set of cfg.DATASETS.CUSTOM, see `register_datasets`."""
    register_datasets(cfg.DATASETS.CUSTOM)


def register_datasets(custom: Mapping[str, Mapping]) -> None:
    """Register data sets under their names; no image file is read yet.

    A name that this function registered before is kept if its fields are the same, and replaced if
    they changed.

    Args:
        custom: {name: fields} as DATASETS.CUSTOM has them.

    Raises:
        ValueError: an unknown field or value, or a name that another data set has.
        FileNotFoundError: CLASSES is the path of a file that does not exist.
    """
    for name, node in custom.items():
        spec = parse(name, node)
        if name in DatasetCatalog:
            if is_foreign(name):
                raise ValueError(
                    f"DATASETS.CUSTOM.{name}: a data set of this name exists already, in "
                    "Detectron2 or in your code; choose another name"
                )
            if _registered[name] == spec:
                continue
            logger.info("Replacing data set %s, since its DATASETS.CUSTOM changed.", name)
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        _registered[name] = spec
        DatasetCatalog.register(name, partial(spec.load, name))
        # "coco" lets Detectron2's own tools evaluate boxes of every format: they convert the loaded
        # dicts.
        known = {"evaluator_type": "coco", **spec.metadata()}
        MetadataCatalog.get(name).set(**known, dirname=str(spec.root))


def is_foreign(name: str) -> bool:
    """Whether a data set has this name that `register_datasets` did not register."""
    return name in DatasetCatalog and name not in _registered


def check_datasets(cfg, names=None) -> None:
    """Load custom data sets, and look for the files of Detectron2's, to fail before training.

    Args:
        names: default DATASETS.TRAIN and TEST.

    Raises:
        FileNotFoundError, ValueError: a name that no data set has; errors of the loaders; see
            `check_loaded` and `check_sizes`.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if names is None else names
    check_names(names)
    for name in names:
        if name not in _registered:
            _check_files(name)
    used = dict.fromkeys(name for name in names if name in _registered)
    loaded = {name: DatasetCatalog.get(name) for name in used}
    check_loaded(cfg, loaded)
    for name, dicts in loaded.items():
        check_sizes(dicts, _registered[name].source)


def check_names(names) -> None:
    """Check that data sets of these names are registered.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        if name not in DatasetCatalog:
            near = get_close_matches(name, [*_registered, *DatasetCatalog], n=1)
            hint = f"did you mean {near[0]}?" if near else "add it to DATASETS.CUSTOM"
            raise ValueError(
                f"DATASETS.TRAIN or TEST names {name}, which is no data set of DATASETS.CUSTOM or "
                f"Detectron2; {hint}"
            )


def check_loaded(cfg, loaded: Mapping[str, list[dict]]) -> None:
    """Check that custom data sets fit the network and each other.

    Args:
        loaded: {name: the data set in Detectron2's standard format}.

    Raises:
        ValueError: class names that differ between the data sets; a number of classes other than
            MODEL.ROI_HEADS.NUM_CLASSES of a detector, MODEL.RETINANET.NUM_CLASSES of RetinaNet and
            FCOS or MODEL.SEM_SEG_HEAD.NUM_CLASSES of a SemanticSegmentor; boxes where the network
            needs class masks, or the reverse; or objects that lack what the network learns, see
            `check_targets`.
    """
    segments = is_segmentor(cfg)
    dense = is_dense_detector(cfg)
    detects = dense or is_detector(cfg)
    classes = {}
    for name, dicts in loaded.items():
        meta = MetadataCatalog.get(name)
        has_masks = hasattr(meta, "stuff_classes")
        if has_masks and detects or segments and not has_masks:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} needs "
                f"{'boxes' if has_masks else 'class masks'}, but {name} has "
                f"{'class masks' if has_masks else 'boxes'}"
            )
        if not has_masks:
            check_targets(cfg, name, dicts, _registered[name].source)
        if segments and meta.ignore_label != cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}, but "
                f"{name} has IGNORE {meta.ignore_label}: set both to the same value"
            )
        first = next(iter(loaded))
        classes[name] = meta.stuff_classes if has_masks else meta.thing_classes
        if classes[name] != classes[first]:
            raise ValueError(
                f"{first} has the classes {classes[first]}, but {name} has {classes[name]}: "
                "give both the same CLASSES"
            )
    head = "SEM_SEG_HEAD" if segments else "RETINANET" if dense else "ROI_HEADS"
    num_classes = cfg.MODEL[head].NUM_CLASSES
    if classes and (detects or segments) and len(classes[first]) != num_classes:
        raise ValueError(
            f"MODEL.{head}.NUM_CLASSES is {num_classes}, but {first} has the "
            f"{count(len(classes[first]), 'class')} {classes[first]}: set it to that number"
        )


def load_reported(name: str, report: AnnotationReport) -> list[dict]:
    """Load a data set and report on its annotations.

    Args:
        report: with `collect`, images that have an error are left out.

    Raises:
        FileNotFoundError, ValueError: see `check_datasets`.
    """
    if name in _registered:
        return _registered[name].load(name, report)
    _check_files(name)
    return DatasetCatalog.get(name)


def _check_files(name: str) -> None:
    """Check the files that the metadata of a data set names: Detectron2's, or a user's own."""
    meta = MetadataCatalog.get(name)
    for key in ("json_file", "dirname", "image_root", "image_dir", "gt_dir"):
        path = meta.get(key)
        if path and not PathManager.exists(path):
            raise FileNotFoundError(
                f"{path}: missing, from the data set {name}. Detectron2 looks for its data sets "
                f"under $DETECTRON2_DATASETS, now {datasets_root()}"
            )


def parse(name: str, node):
    """Build the format object that the fields of DATASETS.CUSTOM.<name> describe.

    Raises:
        ValueError, FileNotFoundError: see `register_custom_datasets`.
    """
    here = f"DATASETS.CUSTOM.{name}"
    if not isinstance(node, Mapping):
        raise ValueError(f"{here} must be a mapping such as {{FORMAT: voc, ROOT: ...}}, not {node}")
    given = {key: value for key, value in node.items() if value is not None}
    kind = given.pop("FORMAT", None)
    if not isinstance(kind, str) or kind not in FORMATS:
        raise ValueError(f"{here}.FORMAT must be one of {', '.join(FORMATS)}; got {kind!r}")
    form, part = FORMATS[kind], given.pop("PART", None)
    known = {field.name.upper(): field for field in fields(form)}
    for key in given:
        if key not in known:
            raise ValueError(
                f"{here}.{key}: unknown field; FORMAT {kind} has {', '.join(known)}, PART"
            )
    values = {}
    for key, field in known.items():  # ROOT comes first: CLASSES may be a file under it
        try:
            value = _CONVERT[field.type](given.get(key, field.default))
            if field.type == Path:
                value = datasets_root() / value
            elif field.type == Names:
                value = _read_names(value, values["root"], f"{here}.{key}")
        except ValueError as error:
            raise ValueError(f"{here}.{key}: {error}") from None
        values[field.name] = value
    try:
        whole = form(**values)
        return Part(whole, part) if part is not None else whole
    except ValueError as error:
        raise ValueError(f"{here}: {error}") from None


def _text(value) -> str:
    # Numbers are accepted: YAML and yacs read a split called 2007 or a class called 10 as one.
    if isinstance(value, bool) or not isinstance(value, str | int | Path):
        raise ValueError(f"expected text, got {value!r}; quote it")
    return str(value)


def _integer(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, got {value!r}")
    return value


def _names(value) -> Names | str:
    """Class names, or the path of a file that lists them."""
    if isinstance(value, str) and value:
        return value
    if value and not isinstance(value, list | tuple):
        raise ValueError(f"expected a list of names or the path of a text file, got {value!r}")
    return tuple(map(_text, value))


def _read_names(names: Names | str, root: Path, field: str) -> Names:
    if isinstance(names, str):
        file = existing(root / names, f"{field} (text is taken as a path; give names as a list)")
        names = read_names(file)
    if len(set(names)) < len(names):
        raise ValueError(f"a name occurs twice in {', '.join(names)}")
    return names


_CONVERT = {
    Path: lambda value: Path(_text(value)).expanduser(),
    str: _text,
    int: _integer,
    Names: _names,
}
