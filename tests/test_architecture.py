"""Nothing lower imports higher: the direction of imports, read from the sources."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "d2_deformable"
# From low to high; a part may import its own row and those above it in this list.
ROWS = [
    {"compat", "needs_detectron2"},
    {"ops"},
    {"layers"},
    {"modeling"},
    {"config", "data", "evaluation", "engine", "checkpoint", "analysis", "model_zoo", "export"},
]
RANK = {part: rank for rank, row in enumerate(ROWS) for part in row}


def imported(source, module):
    """Absolute names that the source of a module ("a.b"; a package is "a.b.__init__") imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base = ".".join(base + ([node.module] if node.module else []))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source, module):
    parts = module.split(".")
    part = parts[1]
    for name in imported(source, module):
        top, *rest = name.split(".")
        if top in {"tools", "train_net", "tests", "reference", "benchmarks"}:
            yield f"{module} imports {name}: the package imports nothing that stands outside it"
        elif part == "config" and name.split(".")[:2] != ["detectron2", "config"]:
            yield f"{module} imports {name}: it may import detectron2.config only"
        elif part != "__init__" and top == PACKAGE and RANK.get(rest[0], -1) > RANK[part]:
            yield f"{module} imports {name}: {part} stands lower than {rest[0]}"


def includes(path):
    return set(re.findall(r"^#include [<\"](.+)[>\"]", path.read_text(), flags=re.M))


def test_kernels_know_nothing_of_aten():
    """One more architecture is to cost seconds, and the emulator needs no CUDA."""
    csrc = ROOT / "csrc"
    todo = [*csrc.glob("cuda/*.cu"), csrc / "cpu" / "kernels" / "table.cpp"]
    todo += [*csrc.glob("c*/kernels/*.h"), *csrc.glob("cuda/*plan.h")]
    allowed = {"torch/headeronly/util/BFloat16.h", "torch/headeronly/util/Half.h"}
    seen = set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        foreign = {name for name in includes(path) if re.match("ATen|torch|c10", name)}
        assert foreign <= allowed, path
        # What they include of ours, too.
        todo += [p.resolve() for name in includes(path) if (p := path.parent / name).exists()]
    names = {path.name for path in seen}
    assert {"sampling.h", "simt.h", "simd.h", "roi_plan.h", "gemm.h", "bin_axis.h"} <= names


SOURCES = sorted(ROOT.glob(f"{PACKAGE}/**/*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_lower_imports_higher(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    part = module.split(".")[1]
    assert part == "__init__" or part in RANK, f"give {part} its place in ROWS above"
    assert not list(violations(path.read_text(encoding="utf-8"), module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("d2_deformable.ops.deform_conv2d", "from ..layers import DeformConv2d"),
        ("d2_deformable.ops.deform_conv2d", "from .. import layers"),
        ("d2_deformable.layers.__init__", "from ..modeling.roi_heads import rfcn"),
        ("d2_deformable.modeling.backbone.deform", "from d2_deformable.config import x"),
        ("d2_deformable.modeling.backbone.deform", "import d2_deformable.engine.trainer"),
        ("d2_deformable.modeling.backbone.__init__", "from ...config import x"),
        ("d2_deformable.config", "from . import ops"),
        ("d2_deformable.config", "import torch"),
        ("d2_deformable.engine.trainer", "def f():\n    import train_net"),
        ("d2_deformable.analysis.plot", "from tests.reference import deform_conv2d"),
        ("d2_deformable.analysis.plot", "import reference"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert list(violations(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "d2_deformable.layers.deform_conv2d",
            "from .. import ops\nfrom ..ops import x\nimport torch",
        ),
        ("d2_deformable.layers.__init__", "from .deform_conv2d import DeformConv2d"),
        (
            "d2_deformable.modeling.backbone.__init__",
            "from . import resnet\nfrom ...layers import x",
        ),
        ("d2_deformable.engine.trainer", "from ..evaluation import x\nfrom ..config import y"),
        ("d2_deformable.config", "from detectron2.config import CfgNode as CN"),
        ("d2_deformable.__init__", "from . import modeling, ops\nfrom .config import x"),
    ],
)
def test_a_right_import_is_not(module, source):
    assert not list(violations(source, module))
