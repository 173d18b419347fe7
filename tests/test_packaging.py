"""Contents and metadata of sdist and wheel, and that they install and work."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement

from d2_deformable import __version__
from d2_deformable.utils.library import PATH

ROOT = Path(__file__).parents[1]
TORCH = ".".join(torch.__version__.split(".")[:2])
# Nothing is fetched, so that no constraint applies; the Makefile's file is named relative to ROOT.
BUILD = {**os.environ, "FORCE_CUDA": "0", "PIP_CONSTRAINT": ""}


@pytest.fixture(scope="module")
def egg_info(tmp_path_factory):
    folder = tmp_path_factory.mktemp("egg")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, env=BUILD, check=True)
    return folder / "d2_deformable.egg-info"


def test_an_sdist_holds_every_file_of_the_checkout(egg_info):
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    files = {name for name in done.stdout.splitlines() if (ROOT / name).exists()}
    files = {name for name in files if not name.startswith(".")}  # CI, and settings of editors
    packed = set((egg_info / "SOURCES.txt").read_text().splitlines())
    assert {"d2_deformable/py.typed", "train_net.py", "csrc/library.cpp"} <= packed
    assert not files - packed
    assert not any(name.endswith((".so", ".pyc")) for name in packed)


def test_the_metadata_describe_the_package(egg_info):
    metadata = Parser().parsestr((egg_info / "PKG-INFO").read_text(encoding="utf-8"))
    assert metadata["Author"] and metadata["License"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text("utf-8").strip()
    assert len(metadata.get_all("Project-URL")) == 2


def test_the_metadata_name_the_torch_of_the_library(egg_info):
    """The version, and so the file name of a wheel, does too."""
    metadata = Parser().parsestr((egg_info / "PKG-INFO").read_text(encoding="utf-8"))
    assert metadata["Version"] == f"{__version__}+torch{TORCH}.cpu"
    needs = {need.name: need for need in map(Requirement, metadata.get_all("Requires-Dist"))}
    assert str(needs["torch"].specifier) == f"=={TORCH}.*"
    assert needs["torch"].specifier.contains(version("torch"), prereleases=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that the sdist builds, which is what `python -m build` makes."""
    folder = tmp_path_factory.mktemp("dist")
    sdist = ["setup.py", "-q", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder]
    subprocess.run([sys.executable, *sdist], cwd=ROOT, env=BUILD, check=True)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "-w", folder]
    wheel = ["pip", "wheel", *options, folder / f"d2_deformable-{__version__}.tar.gz"]
    subprocess.run([sys.executable, "-m", *wheel], cwd=folder, env=BUILD, check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run a program of a new environment that has the wheel and shares the dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file does not read the .pth files there: the editable install stays out.
    shared = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(shared))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    options = ["--no-index", "--no-deps", "--ignore-installed", wheel]
    subprocess.run([*pip, *options], cwd=folder, env=BUILD, check=True)
    environment = {name: os.environ[name] for name in os.environ.keys() - {"PYTHONPATH"}}

    def run(program, *arguments):
        command = [folder / "bin" / program, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_an_sdist_builds_a_wheel_of_its_version(wheel):
    """For any Python from 3.11, since the library does not use Python's C API."""
    assert wheel.name.startswith(f"d2_deformable-{__version__}-cp311-abi3-")


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_environment(installed, tmp_path):
    code = "import d2_deformable as d, pathlib; print(pathlib.Path(d.__file__).parent)"
    package = Path(installed("python", "-c", code).strip())
    assert not package.is_relative_to(ROOT) and (package / "py.typed").exists()

    health = json.loads(installed("d2-deformable", "doctor", "--json"))
    assert health["package"]["folder"] == str(package) and health["operators"]["torch"]
    assert all(result["passed"] for result in health["self_test"])

    models = json.loads(installed("d2-deformable", "models", "--json"))
    checkpoint = "d2_deformable://warped_shapes_rfcn_R_18_dconv3_dpool.pth"
    assert len(models) > 100 and checkpoint in json.dumps(models)
    configs = package / "model_zoo" / "configs"
    assert {file.relative_to(configs) for file in configs.glob("**/*.yaml")} == {
        file.relative_to(ROOT / "configs") for file in ROOT.glob("configs/**/*.yaml")
    }

    image = ROOT / "docs" / "images" / "shapes.jpg"
    installed("d2-deformable", "predict", str(image), "--output", str(tmp_path))
    _, found = map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())
    assert found["names"] == ["cross", "triangle", "crescent"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file with readelf")
def test_a_wheel_for_release_leaves_out_the_libraries_of_torch():
    command = ["readelf", "--wide", "--dynamic", PATH]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(lib\S+)\]", table))
    system = {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "libstdc++.so.6"}  # of every manylinux
    cuda = {name for name in needed if "cu" in name}  # such wheels are not for release
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    left_out = re.findall(r"--exclude (\S+)", settings["repair-wheel-command"])
    assert set(left_out) == needed - system - cuda


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_an_image_is_pinned_and_not_run_as_root(name):
    """Its packages are those of constraints.txt; what it copies exists."""
    file = (ROOT / f"docker/{name}.Dockerfile").read_text()
    images = re.findall(r"^FROM (\S+)", file, flags=re.M)
    assert len(images) == 2 and all(re.search(r":\d+\.\d+\.\d+-", image) for image in images)
    assert re.findall(r"^USER (\S+)", file, flags=re.M) == ["10001"]
    assert "PIP_CONSTRAINT=/src/constraints.txt" in file and "==" not in file
    assert re.findall(r"^COPY (?!--from)(\S+)", file, flags=re.M) == ["constraints.txt", "."]
    if name == "cuda" and torch.version.cuda:
        assert f"cuda:{torch.version.cuda.partition('.')[0]}." in images[0]


def test_images_are_built_from_what_setup_py_needs():
    """Neither .venv nor a library that was built outside gets into an image."""
    lines = (ROOT / ".dockerignore").read_text().split()
    copied = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[0] == "*" and {"**/*.so", "**/__pycache__"} == set(lines[-2:])
    assert all((ROOT / name).exists() for name in copied)
    assert {"setup.py", "pyproject.toml", "README.md", "constraints.txt"} <= copied
    assert {"configs", "csrc", "d2_deformable"} <= copied


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"


def test_issue_forms_are_valid():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for form in map(yaml.safe_load, (file.read_text() for file in forms)):
        assert form["name"] and form["description"]
        assert all(part["attributes"]["label"] for part in form["body"])
