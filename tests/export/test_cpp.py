"""docs/cpp/detect.cpp, compiled as its README says, finds the same objects as the network."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from d2_deformable.export import export_torchscript
from d2_deformable.export.verify import are_rounding, differences
from d2_deformable.ops import _library
from export_networks import noise, small_network

SOURCE = Path(__file__).parents[2] / "docs/cpp/detect.cpp"
TORCH = Path(torch.__file__).parent
PYTHON = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDLIBRARY") or "-")


@pytest.fixture(scope="module")
def detect(tmp_path_factory):
    """The compiled program; takes about 8 seconds."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("no g++ on the PATH")
    program = tmp_path_factory.mktemp("cpp") / "detect"
    libraries = f"-L{TORCH}/lib -ltorch_cpu -lc10 -ldl -Wl,--disable-new-dtags,-rpath,{TORCH}/lib"
    command = [compiler, "-std=c++20", SOURCE, "-o", program, f"-I{TORCH}/include"]
    subprocess.run([*command, *libraries.split()], check=True)
    return program


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A network, its file, an image that was not used for tracing, and that image as a PPM file."""
    folder = tmp_path_factory.mktemp("case")
    model, image = small_network("rfcn"), noise(70, 110).round()
    export_torchscript(model, noise(96, 128), folder / "detector.pt")
    pixels = image.flip(0).permute(1, 2, 0).numpy().astype(np.uint8)
    Image.fromarray(pixels).save(folder / "image.ppm")
    return model, folder / "detector.pt", image, folder / "image.ppm"


def test_it_finds_what_the_network_finds(detect, case):
    if PYTHON.suffix != ".so" or not PYTHON.exists():
        pytest.skip(f"torchvision's wheel needs libpython.so, but {PYTHON} is not one")
    model, file, image, ppm = case
    torchvision_library = next(Path(torchvision.__file__).parent.glob("_C*.so"))
    libraries = [_library.PATH, PYTHON, torchvision_library]
    run = subprocess.run([detect, file, ppm, *libraries], check=True, stdout=subprocess.PIPE)
    rows = torch.tensor([list(map(float, line.split())) for line in run.stdout.splitlines()])
    found = differences(model, (rows[:, 2:], rows[:, 1], rows[:, 0].long()), image)
    assert found["detections"] == len(rows) > 20
    assert are_rounding(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: detect detector.pt image.ppm LIBRARY"),
        (["nowhere.so"], "nowhere.so: cannot open shared object file"),
        ([_library.PATH], "Unknown builtin op: torchvision::nms"),
    ],
)
def test_errors_are_reported(detect, case, arguments, message):
    _, file, _, ppm = case
    run = subprocess.run([detect, file, ppm, *arguments], stderr=subprocess.PIPE, text=True)
    assert run.returncode == 1 and message in run.stderr
