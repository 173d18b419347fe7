"""Every YAML of configs/ by its kind, and functions that read one."""

import re
from functools import cache
from pathlib import Path

from detectron2.config import get_cfg

from d2_deformable import add_deformable_config

CONFIGS = Path(__file__).parents[1] / "configs"
YAMLS = sorted(CONFIGS.rglob("*.yaml"))
MODELS = [p for p in YAMLS if not p.name.startswith("Base-")]
QUICK = [p for p in MODELS if p.parent.name == "quick"]
ZOO = [p for p in MODELS if p.parent.name == "model_zoo"]
FPN = [p for p in MODELS if "_fpn_" in p.stem.lower()]
THREE_X = [p for p in FPN if "_3x" in p.stem]  # each is a 1x file with another schedule
STRIDE_16 = [p for p in MODELS if p.parent.name.endswith("-Detection") and p not in FPN]
DEEPLAB = [p for p in MODELS if "deeplab" in p.stem]
SEGMENTATION = [p for p in DEEPLAB if p not in QUICK]
PAPER = [p for p in MODELS if p.stem.endswith("_paper")]
# The parts of a name that tell how a YAML differs from its plain twin.
PART = re.compile(
    r"_(m?dconv\d|m?dconv_c3-c5|m?dpool_mmdet|m?dpool|dcn|group4|atrous\d|3x3|1x1|MB?)(?=_|$)"
)
VARIANTS = [p for p in MODELS if PART.search(p.stem) and p not in PAPER + ZOO + THREE_X]
PLAIN = [p for p in MODELS if p not in VARIANTS + PAPER + ZOO + THREE_X]


def parts(path):
    return PART.findall(path.stem)


def detector(path):
    """The detector in a name: rfcn, faster, ...; names in quick/ begin with their data set."""
    names = "rfcn|faster|mask|cascade|keypoint|panoptic|retinanet|fcos|class_aware|rpn"
    return re.search(names, path.stem)[0]


def plain_twin(path):
    return path.with_stem(PART.sub("", path.stem))


def bases_of(path):
    """The `_BASE_` of a variant.

    It is the plain twin, or the network whose name lacks the last of several changes. Tests at
    several scales have a second base with the test settings.
    """
    if m := re.search(r"_(MB?)$", path.stem):
        return [path.with_stem(path.stem.removesuffix(m[0])), path.with_stem(f"Base-COCO-{m[1]}")]
    if m := re.search(r"_(3x3|1x1|group4)$", path.stem):
        return [path.with_stem(path.stem.removesuffix(m[0]))]
    return [plain_twin(path)]


def relative(path):
    return str(path.relative_to(CONFIGS))


def load(path=None):
    """The config of a YAML, or the defaults if there is none."""
    return _load(path).clone()


@cache  # many tests read the same YAMLs
def _load(path):
    cfg = get_cfg()
    add_deformable_config(cfg)
    if path is not None:
        cfg.merge_from_file(str(path))
    return cfg


def flat(node, prefix=""):
    """{"MODEL.RPN.NMS_THRESH": 0.7, ...} for a config, or for the content of a YAML."""
    values = {}
    for key, value in node.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value
    return values
