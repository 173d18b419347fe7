"""The direction of imports, read from the sources: lower parts never import higher ones."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "d2_deformable"
# From low to high. A part may import from its own row and from earlier ones in this list.
ROWS = [
    {"compat", "needs_detectron2"},
    {"utils"},
    {"ops"},
    {"layers"},
    {"integrations"},
    {"modeling"},
    {"config"},
    {"data", "evaluation"},
    {"checkpoint"},
    {"engine"},
    {"export", "analysis", "model_zoo"},
    {"inference"},
    {"app"},
    {"cli", "__main__"},
    {"tools", "train_net"},
]
OF_CONFIG = ("detectron2.config.", f"{PACKAGE}.utils.", f"{PACKAGE}.needs_detectron2")
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


def part_of(name):
    """The part that a module or a name in it belongs to; "" if it is not ours."""
    top, *rest = name.split(".")
    if top == PACKAGE:
        return rest[0] if rest else "__init__"
    return top if top in ROWS[-1] else ""


def violations(source, module):
    part = part_of(module)
    for name in imported(source, module):
        other = part_of(name)
        if name.split(".")[0] in {"tools", "train_net", "tests", "reference", "benchmarks"}:
            yield f"{module} imports {name}: nothing of ours imports a command, test or benchmark"
        elif part == "config" and not name.startswith(OF_CONFIG):
            yield f"{module} imports {name}: it may import only {', '.join(OF_CONFIG)}"
        elif part in ROWS[0] and other:
            yield f"{module} imports {name}: it may import nothing of ours"
        elif part != "__init__" and RANK.get(other, -1) > RANK[part]:
            yield f"{module} imports {name}: {part} is lower than {other}"


def graphs(sources):
    """Import graphs, including imports inside functions: {part: parts}, {module: modules}.

    Args:
        sources: {module: source}, named as `imported` takes them.
    """
    parts, modules = {}, {}
    for module, source in sources.items():
        for name in imported(source, module):
            if part_of(name) not in {"", part_of(module), "__init__"}:
                parts.setdefault(part_of(module), set()).add(part_of(name))
            while name:  # for a name in a module, find the module
                found = {name, f"{name}.__init__"} & sources.keys()
                if found:
                    modules.setdefault(module, set()).update(found)
                    break
                name = name.rpartition(".")[0]
    parts.pop("__init__", None)  # registers parts of every row
    return parts, modules


def circle(graph):
    """Find nodes that import each other in a circle; None if there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]


def includes(path):
    return set(re.findall(r"^#include [<\"](.+)[>\"]", path.read_text(), flags=re.M))


def test_kernels_do_not_include_aten():
    """Kernels without ATen compile for another architecture in seconds, and run in the emulator
    without CUDA."""
    csrc = ROOT / "csrc"
    todo = [*csrc.glob("cuda/*.cu"), csrc / "cpu" / "kernels" / "cpu_kernel_table.cpp"]
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
        # Follow their includes of our own headers.
        todo += [p.resolve() for name in includes(path) if (p := path.parent / name).exists()]
    names = {path.name for path in seen}
    assert {"sampling.h", "simt.h", "simd.h", "roi_plan.h", "gemm.h", "bin_axis.h"} <= names


PATHS = [*ROOT.glob(f"{PACKAGE}/**/*.py"), *ROOT.glob("tools/*.py"), ROOT / "train_net.py"]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in sorted(PATHS)
}


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_lower_imports_higher(module):
    part = part_of(module)
    assert part == "__init__" or part in RANK, f"add {part} to ROWS above"
    assert not list(violations(SOURCES[module], module))


def test_no_packages_and_no_files_import_each_other():
    parts, modules = graphs(SOURCES)
    assert {"data", "engine", "train_net"} <= parts.keys() and len(modules) > 100
    assert not circle(parts)
    assert not circle(modules)


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("d2_deformable.data.voc", "from ..evaluation import VOCEvaluator"),
        ("d2_deformable.data.voc", "def f():\n    from ..evaluation.voc import VOCEvaluator"),
        ("d2_deformable.analysis.draw", "from d2_deformable import app"),
        ("d2_deformable.checkpoint.files", "def f():\n    import d2_deformable.engine.trainer"),
    ],
)
def test_a_circle_of_packages_is_found(module, planted):
    parts, _ = graphs(SOURCES | {module: f"{SOURCES[module]}\n{planted}\n"})
    assert part_of(module) in circle(parts)


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("d2_deformable.checkpoint.mxnet_params", "from .files import read_weights"),
        ("d2_deformable.checkpoint.mxnet_params", "def f():\n    from . import files"),
        ("d2_deformable.engine.trainer", "from . import read_config"),
        ("d2_deformable.ops._library", "import d2_deformable.ops.deform_conv2d"),
        ("d2_deformable.modeling.tta", "from .. import __version__"),
    ],
)
def test_a_circle_of_files_is_found(module, planted):
    _, modules = graphs(SOURCES | {module: f"{SOURCES[module]}\n{planted}\n"})
    assert module in circle(modules)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("d2_deformable.ops.deform_conv2d", "from ..layers import DeformConv2d"),
        ("d2_deformable.ops.deform_conv2d", "from .. import layers"),
        ("d2_deformable.layers.__init__", "from ..modeling.roi_heads import rfcn"),
        ("d2_deformable.modeling.backbone.deform", "from d2_deformable.config import x"),
        ("d2_deformable.modeling.backbone.deform", "import d2_deformable.engine.trainer"),
        ("d2_deformable.modeling.backbone.__init__", "from ...config import x"),
        ("d2_deformable.integrations.torchvision", "from ..modeling import build_model"),
        ("d2_deformable.layers.conversion", "from ..integrations import torchvision"),
        ("d2_deformable.config", "from . import ops"),
        ("d2_deformable.utils.files", "from ..config import x"),
        ("d2_deformable.compat", "from .utils.provenance import x"),
        ("d2_deformable.data.proposals", "from ..checkpoint import x"),
        ("d2_deformable.evaluation.proposals", "from ..checkpoint.files import x"),
        ("d2_deformable.checkpoint.convert.settings", "from ...engine import x"),
        ("d2_deformable.engine.imagenet", "from ..analysis.run import x"),
        ("d2_deformable.analysis.report", "from ..cli.command import x"),
        ("d2_deformable.cli.command", "import tools.export"),
        ("tools.export", "from benchmarks import networks"),
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
        ("d2_deformable.config", "from .utils.config_files import x"),
        ("d2_deformable.ops.deform_conv2d", "from ..utils import files"),
        ("d2_deformable.cli.command", "from ..analysis import x\nfrom ..engine import y"),
        ("tools.export", "from d2_deformable.cli import x"),
        ("train_net", "from d2_deformable.engine import Trainer"),
        ("d2_deformable.__init__", "from . import modeling, ops\nfrom .config import x"),
    ],
)
def test_an_allowed_import_is_accepted(module, source):
    assert not list(violations(source, module))
