"""A config for a user's data: a network of the zoo, with settings chosen from the data."""

import re
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import add_deformable_config, merge_overrides, read_config
from ..data.custom import register_datasets
from ..data.discover import categories_without_objects, discover, name_splits, train_and_val
from ..data.statistics import (
    Objects,
    best_overlap,
    collect_objects,
    read_anchors,
    resize_objects,
)
from ..utils.config_files import difference
from ..utils.config_text import to_yaml
from ..utils.text import count
from .catalog import PREFIX
from .model_zoo import get_config_file

PRETRAINED = f"{PREFIX}warped_shapes_rfcn_R_18_dconv3_dpool.pth"


class Network(NamedTuple):
    """A network to start from.

    Args:
        title: for people.
        config: of this package, without its data set and schedule.
        overrides: KEY, VALUE, ... to change in it.
        sides: lowest and highest shorter side of the input in pixels.
    """

    title: str
    config: str
    overrides: tuple
    sides: tuple[int, int]


_SMALL = ("MODEL.WEIGHTS", PRETRAINED)
_R_50 = ("MODEL.RESNETS.DEPTH", 50)
_R_50 += ("MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl")
_RFCN, _DEEPLAB = "VOC-Detection/rfcn_R_{}_dconv3_dpool.yaml", "VOC-SemanticSegmentation/"
NETWORKS = {
    "boxes": {
        "small": Network(
            "Deformable R-FCN with a half-width ResNet-18",
            "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml",
            _SMALL,
            (160, 400),
        ),
        "medium": Network("Deformable R-FCN with ResNet-50", _RFCN.format(50), (), (480, 800)),
        "large": Network("Deformable R-FCN with ResNet-101", _RFCN.format(101), (), (480, 800)),
    },
    "masks": {
        "small": Network(
            "Deformable DeepLab with a half-width ResNet-18",
            "quick/warped_shapes_deeplab_R_18_dconv3.yaml",
            _SMALL,
            (160, 256),
        ),
        "medium": Network(
            "Deformable DeepLab with ResNet-50",
            f"{_DEEPLAB}deeplab_R_101_dconv3.yaml",
            _R_50,
            (240, 480),
        ),
        "large": Network(
            "Deformable DeepLab with ResNet-101",
            f"{_DEEPLAB}deeplab_R_101_dconv3.yaml",
            (),
            (240, 480),
        ),
    },
}
SIZES = tuple(NETWORKS["boxes"])

FEW_TO_TRAIN, FEW_TO_TEST = 20, 5  # images; with fewer, the header warns
SMALL_OBJECT = 32  # pixels that the side of a small object should have: two cells of stride 16
JITTER = (0.85, 0.925, 1, 1.075, 1.15)  # sizes in training, relative to that of the test


class Choices:
    """Settings for a data set, each with its reason.

    Args:
        cfg: of the network; changed in place.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg
        self.comments: dict[str, str] = {}

    def set(self, key: str, value, why: str = "") -> None:
        *sections, name = key.split(".")
        node = self.cfg
        for section in sections:
            node = node[section]
        node[name] = value
        self.comments[key] = why


def new_config(root, kind: str, size: str = "small", given: dict | None = None, file="FILE") -> str:
    """Return a YAML, complete in itself, that trains a deformable network on labelled images.

    Args:
        root: folder of the data set.
        kind: FORMAT of its labels: voc, coco, yolo, csv or mask.
        size: small, medium or large.
        given: fields of DATASETS.CUSTOM that `discover` need not find.
        file: path of the YAML, for its comments.

    Raises:
        FileNotFoundError, ValueError: the data set's layout is not understood, or its loader's
            errors.
    """
    network = NETWORKS["masks" if kind == "mask" else "boxes"][size]
    cfg = read_config(get_config_file(network.config))
    merge_overrides(cfg, list(network.overrides))
    cfg.DATASETS.CUSTOM = CfgNode(new_allowed=True)
    choices = Choices(cfg)
    splits = discover(root, kind, given)
    used = train_and_val(splits)
    custom = name_splits(root, used)
    register_datasets(custom)
    train, val = (DatasetCatalog.get(name) for name in custom)
    meta = MetadataCatalog.get(next(iter(custom)))
    classes = meta.stuff_classes if kind == "mask" else meta.thing_classes
    objects = collect_objects(train)
    if kind != "mask" and not len(objects.boxes):
        raise ValueError(f"{root}: no object in {count(len(train), 'image to train on')}")

    own_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    _choose_data(choices, custom, splits, classes, meta)
    left_out = categories_without_objects(splits) if "CLASSES" not in (given or {}) else []
    if left_out:
        first = next(iter(custom))
        choices.comments[f"DATASETS.CUSTOM.{first}.CLASSES"] = (
            f"Left out, since no object of the json has them: {', '.join(left_out)}."
        )
    own_anchors = read_anchors(cfg)
    side, longest = _choose_image_size(choices, objects, network.sides, train)
    if own_anchors:
        _choose_anchors(choices, resize_objects(objects, side, longest), own_anchors)
    anew = ["classes"] if len(classes) != own_classes else []
    anchors = read_anchors(cfg)
    if own_anchors and anchors and len(anchors.cells[0]) != len(own_anchors.cells[0]):
        anew.append("anchors")
    _choose_weights(choices, size, kind, anew)
    _choose_flip(choices, classes)
    choices.set(
        "DATALOADER.NUM_WORKERS",
        cfg.DATALOADER.NUM_WORKERS,
        "Processes that read images; 0 reads them between iterations, which a GPU waits for.",
    )
    with_objects = len(train) if kind == "mask" else len(np.unique(objects.images))
    _choose_schedule(choices, with_objects)
    stem = next(iter(custom)).removesuffix("_train")
    choices.set("OUTPUT_DIR", f"output/{stem}_{size}", "Checkpoints, metrics.json and the log.")
    cfg.TEST.VOC_METRIC, cfg.TEST.SEM_SEG_RESOLUTION = "area", "full"

    default = get_cfg()
    add_deformable_config(default)
    tree = difference(cfg, default, choices.comments)
    first = ("DATASETS", "INPUT", "SOLVER", "TEST", "OUTPUT_DIR")  # then the network
    tree = {key: tree[key] for key in (*first, *tree) if key in tree} | {"VERSION": 2}
    changed = [key for key in network.overrides[::2] if key != "MODEL.WEIGHTS"]
    but = f", with another {', '.join(changed)}" if changed else ""
    choices.comments["MODEL"] = f"The network, as in configs/{network.config}{but}."
    few = ""
    if len(train) < FEW_TO_TRAIN or len(val) < FEW_TO_TEST:
        few = (
            "# So few images give uncertain results: better label at least "
            f"{FEW_TO_TRAIN} to train on and {FEW_TO_TEST} to test on.\n"
        )
    header = (
        f"# {network.title} for {root}:\n"
        f"# {count(len(train), 'image to train on')}, {len(val):,} to test on, "
        f"{count(len(classes), 'class')}. Comments say why a value was chosen.\n{few}"
        f"#   d2-deformable data check {file}\n"
        f"#   d2-deformable train --config-file {file}\n"
    )
    return header + to_yaml(tree, choices.comments)


def _choose_data(choices: Choices, custom, splits, classes, meta) -> None:
    train, val = custom
    choices.set("DATASETS.TRAIN", (train,))
    choices.set("DATASETS.TEST", (val,))
    parts = "ROOT is absolute, so that the command works in every folder."
    if "PART" in custom[train]:
        parts += (
            " There is only one set of labelled images: PART divides it by the images' names, and "
            "keeps a fifth to test on. The same images always give the same parts."
        )
    elif "val" not in splits:
        parts += " There is no val split: the results are those of test."
    choices.set("DATASETS.CUSTOM", CfgNode(custom, new_allowed=True), parts)
    head = "SEM_SEG_HEAD" if hasattr(meta, "stuff_classes") else "ROI_HEADS"
    choices.set(f"MODEL.{head}.NUM_CLASSES", len(classes))
    if head == "SEM_SEG_HEAD":
        choices.set("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", meta.ignore_label)


def _choose_weights(choices: Choices, size: str, kind: str, anew: list[str]) -> None:
    """Keep the network's weights, and say which layers they are for.

    Args:
        anew: what there is another number of than in the packaged network.
    """
    weights = choices.cfg.MODEL.WEIGHTS
    if size == "small":
        why = "The checkpoint that comes with the package, so that nothing is downloaded."
        if kind == "mask":
            why += " It is a detector's: the backbone is read, and the head starts anew."
        elif anew:
            why += (
                f" Layers that depend on the number of {' or '.join(anew)} "
                'start anew; the training names them in warnings "Skip loading parameter".'
            )
    else:
        why = "Pre-trained on ImageNet; downloaded at the first run."
    choices.set("MODEL.WEIGHTS", weights, why)


def _choose_image_size(choices: Choices, objects: Objects, sides, train) -> tuple[int, int]:
    """Return (shorter side, limit of the longer side) of the input in pixels."""
    images = np.array([(record["width"], record["height"]) for record in train], dtype=float)
    own = float(np.median(images.min(axis=1)))
    lowest, highest = sides
    why = f"The images' shorter side has {own:.0f} pixels (median)."
    wanted = own
    if len(objects.boxes):
        relative = objects.sides / images.min(axis=1)[objects.images]
        quarter = float(np.quantile(relative, 0.25))
        wanted = min(own, SMALL_OBJECT / max(quarter, 1e-3))
        why += (
            f" A quarter of the objects is smaller than {quarter:.1%} of it; at this size they "
            f"have up to {quarter * _whole(wanted, lowest, highest):.0f} pixels."
        )
    side = _whole(wanted, lowest, highest)
    why += (
        f" The network's range is {lowest} to {highest}: larger inputs show smaller objects, and "
        "take time and memory in proportion to their area."
    )
    aspect = min(2.5, float(np.quantile(images.max(axis=1) / images.min(axis=1), 0.95)))
    training = tuple(sorted({_whole(side * factor) for factor in JITTER}))
    choices.set("INPUT.MIN_SIZE_TRAIN", training, why)
    choices.set("INPUT.MAX_SIZE_TRAIN", _whole(training[-1] * aspect, up=True))
    choices.set("INPUT.MIN_SIZE_TEST", side)
    choices.set("INPUT.MAX_SIZE_TEST", _whole(side * aspect, up=True))
    return side, choices.cfg.INPUT.MAX_SIZE_TEST


def _whole(value: float, lowest: float = 16, highest: float = np.inf, up: bool = False) -> int:
    """The multiple of the network's stride, 16, that is next to a value within limits."""
    value = min(max(value, lowest), highest) / 16
    return 16 * int(np.ceil(value) if up else np.round(value))


def _choose_anchors(choices: Choices, objects: Objects, own) -> None:
    """Anchors over the sizes and aspect ratios of most objects, if they fit better.

    Args:
        objects: in pixels of the network's input.
        own: the network's anchors.
    """
    low, high = np.quantile(objects.sides, (0.05, 0.95)).clip(min=8)
    if high < 4 * low:
        middle = np.sqrt(low * high)
        low, high = middle / 2, middle * 2
    steps = min(6, int(np.ceil(np.log2(high / low))) + 1)
    sizes = [round(float(s)) for s in np.geomspace(low, high, steps)]
    width, height = (objects.boxes[:, 2:] - objects.boxes[:, :2]).T
    tenth, median, last_tenth = np.quantile(height / width, (0.1, 0.5, 0.9))
    median = 1.0 if 0.8 < median < 1.25 else median
    spread = np.clip(np.sqrt(last_tenth / tenth), 1.5, 3)
    ratios = [round(float(r), 2) for r in (median / spread, median, median * spread)]

    key = "MODEL.ANCHOR_GENERATOR"
    before = choices.cfg.MODEL.ANCHOR_GENERATOR.clone()
    choices.set(f"{key}.SIZES", [sizes])
    choices.set(f"{key}.ASPECT_RATIOS", [ratios])
    with_own = best_overlap(objects, own).mean()
    anchors = read_anchors(choices.cfg)
    assert anchors is not None  # the network has some of its own
    overlap = best_overlap(objects, anchors).mean()
    if overlap > with_own:
        why = (
            "Square root of the area and height / width of the anchors, over those of nine in ten "
            f"objects. An object overlaps its best anchor by an IoU of {overlap:.2f} on average, "
            f"{with_own:.2f} with the network's own anchors."
        )
    else:
        choices.set(f"{key}.SIZES", before.SIZES)
        choices.set(f"{key}.ASPECT_RATIOS", before.ASPECT_RATIOS)
        why = (
            f"The network's own: an object overlaps its best anchor by an IoU of {with_own:.2f} on "
            f"average, {overlap:.2f} with anchors over the sizes of nine in ten objects."
        )
    choices.comments[key] = why


def _choose_flip(choices: Choices, classes) -> None:
    sided = [n for n in classes if re.search(r"(?i)(?<![a-z])(left|right)(?![a-z])", n)]
    if sided:
        why = f"No mirrored images, which would turn left into right in {', '.join(sided)}."
        choices.set("INPUT.RANDOM_FLIP", "none", why)
    else:
        why = "Half of the images are mirrored; none if left and right matter, as in text."
        choices.set("INPUT.RANDOM_FLIP", "horizontal", why)


def _choose_schedule(choices: Choices, images: int) -> None:
    solver = choices.cfg.SOLVER
    batch = solver.IMS_PER_BATCH
    epochs = 12 * max(1.0, (5000 / images) ** (1 / 3))
    iterations = max(200, round(images * epochs / batch))
    iterations = int(float(f"{iterations:.2g}"))
    choices.set(
        "SOLVER.IMS_PER_BATCH",
        batch,
        "For another batch size, change BASE_LR in proportion, and MAX_ITER and STEPS inversely.",
    )
    choices.set("SOLVER.BASE_LR", solver.BASE_LR)
    choices.set(
        "SOLVER.MAX_ITER",
        iterations,
        f"{count(images, 'image with objects')}, seen {iterations * batch / images:.0f} times: 12 "
        "times from 5,000 images on, more often the fewer there are, and never less than 200 "
        "iterations.",
    )
    choices.set(
        "SOLVER.STEPS",
        (round(0.8 * iterations), round(0.93 * iterations)),
        "The learning rate falls by a factor of 10 near the end. Change it with MAX_ITER.",
    )
    choices.set(
        "SOLVER.WARMUP_ITERS",
        min(solver.WARMUP_ITERS, iterations // 20),
        "A twentieth of the training at most; a run that ends in its warm-up learns little.",
    )
    period = min(5000, iterations // 5)
    why = "An interrupted training loses at most this many iterations; every file is kept."
    choices.set("SOLVER.CHECKPOINT_PERIOD", period, why)
    choices.set("TEST.EVAL_PERIOD", period, "With each checkpoint.")
