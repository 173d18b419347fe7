"""Packages that an import loads and needs; each test runs in its own Python process."""

import pkgutil
import re
import subprocess
import sys

import pytest

import d2_deformable

BLOCK = """
import sys

class Missing:
    names = set()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in cls.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing)
"""
OPERATORS = """
import torch
from d2_deformable import ops

x = torch.randn(2, 8, 6, 5, requires_grad=True)
rois = torch.tensor([[0, 1.0, 2, 40, 50], [1, 0, 0, 60, 30]])
pool = {"output_size": 2, "spatial_scale": 0.1}

def check(output, *leaves):
    gradients = torch.autograd.grad(output.square().sum(), leaves)
    assert all(gradient.any() for gradient in gradients)

offset = torch.randn(2, 18, 6, 5, requires_grad=True)
weight = torch.randn(4, 8, 3, 3, requires_grad=True)
check(ops.deform_conv2d(x, offset, weight, padding=1), x, offset, weight)
shift = torch.randn(2, 2, 2, 2, requires_grad=True)
check(ops.deform_roi_pool(x, rois, shift, **pool), x, shift)
check(ops.deform_roi_align(x, rois, shift, **pool), x, shift)
check(ops.ps_roi_pool(x, rois, **pool), x)
"""


def python(*lines, missing=()) -> subprocess.CompletedProcess:
    code = "\n".join([BLOCK, f"Missing.names.update({list(missing)})", *lines])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


LAYERS = """
from torch import nn
from d2_deformable.layers import DeformConv2d, deform_modules

net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
expected = net(x)
assert torch.allclose(deform_modules(net, [["0", {"groups": 2}]])(x), expected, atol=1e-4)
check(net(x), *net.parameters())
"""
TORCHVISION = """
import torchvision
from d2_deformable.integrations.torchvision import deformable
from d2_deformable.layers import DeformConv2d

net = deformable(torchvision.models.resnet18(), last=2)
assert sum(isinstance(layer, DeformConv2d) for layer in net.modules()) == 2
net(torch.randn(2, 3, 64, 64)).square().sum().backward()
assert net.layer4[1].conv2.conv_offset.weight.grad.any()
assert not any(name.split(".")[0] == "detectron2" for name in sys.modules)
"""
OTHERS = ["cv2", "detectron2", "fvcore", "iopath", "matplotlib", "omegaconf", "pycocotools"]


@pytest.mark.parametrize("use", [OPERATORS, OPERATORS + LAYERS], ids=["operators", "layers"])
def test_operators_and_layers_need_torch_alone(use):
    done = python(use, missing=[*OTHERS, "torchvision"])
    assert done.returncode == 0, done.stderr


def test_torchvision_models_need_no_detectron2():
    done = python("import torch", TORCHVISION, missing=OTHERS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "use",
    [
        "from d2_deformable import add_deformable_config",
        "import d2_deformable; d2_deformable.add_deformable_config",
        "from d2_deformable import model_zoo",
        "from d2_deformable import modeling",
        "import d2_deformable.modeling",
        "from d2_deformable.modeling import RFCNHeads",
    ],
)
def test_a_missing_detectron2_is_named(use):
    done = python("import d2_deformable", use, missing=["detectron2"])
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: d2_deformable needs Detectron2, which is not installed")
    assert "d2-deformable install-detectron2" in last


def test_every_other_part_names_a_missing_detectron2():
    parts = {info.name for info in pkgutil.iter_modules(d2_deformable.__path__)}
    parts -= {"_C", "__main__", "cli", "compat", "integrations", "layers", "ops", "utils"}
    assert {"analysis", "config", "engine", "modeling"} <= parts
    done = python(
        "import importlib",
        f"for part in {sorted(parts)}:",
        "    try: importlib.import_module(f'd2_deformable.{part}')",
        "    except ImportError as error: print(part, type(error).__name__, error)",
        missing=["detectron2"],
    )
    named = re.findall(r"^(\w+) ImportError d2_deformable needs Detectron2", done.stdout, re.M)
    assert set(named) == parts, done.stdout


def test_no_other_missing_package_is_tolerated():
    done = python("import d2_deformable", missing=["fvcore"])
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'fvcore'\n")


def test_the_package_registers_and_loads_nothing_more():
    done = python(
        "import d2_deformable",
        "from detectron2.modeling import META_ARCH_REGISTRY",
        "from detectron2.utils.file_io import PathManager",
        "assert 'DeformRCNN' in META_ARCH_REGISTRY",
        "assert PathManager.get_local_path('d2_deformable://warped_shapes_rfcn_R_18_dconv3_dpool.pth')",
        "print(*(name for name in sys.modules if name.startswith('d2_deformable.')))",
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    parts = [name.split(".")[1:] for name in done.stdout.split()]
    expected = {"config", "layers", "model_zoo", "modeling", "ops", "utils"}
    assert {part[0] for part in parts} == expected | {"compat", "needs_detectron2"}
    assert {part[1] for part in parts if part[0] == "model_zoo" and part[1:]} == {
        "catalog",
        "index",
    }


def test_imports_are_silent():
    done = python("import d2_deformable", "from d2_deformable import analysis, engine, export")
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_command_that_needs_detectron2_ends_with_one_line():
    run = "from d2_deformable.cli.main import main; main(['predict', 'a.jpg'])"
    done = python(run, missing=["detectron2"])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("d2-deformable predict: d2_deformable needs Detectron2")
