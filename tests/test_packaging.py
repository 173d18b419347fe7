"""What an sdist holds, and what its metadata say."""

import os
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from d2_deformable import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def egg_info(tmp_path_factory):
    folder = tmp_path_factory.mktemp("egg")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "FORCE_CUDA": "0"}, check=True)
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


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"


def test_issue_forms_are_valid():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for form in map(yaml.safe_load, (file.read_text() for file in forms)):
        assert form["name"] and form["description"]
        assert all(part["attributes"]["label"] for part in form["body"])
