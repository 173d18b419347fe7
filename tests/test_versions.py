"""All files that name the supported torch versions agree with the Makefile's table."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from d2_deformable.ops._autograd import TESTED

ROOT = Path(__file__).parents[1]
TABLE = dict(
    re.findall(r"^TORCHVISION_(\S+) := (\S+)$", (ROOT / "Makefile").read_text(), flags=re.M)
)
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))


def test_pinned_pair():
    assert TABLE[PINNED["torch"]] == PINNED["torchvision"]


def test_locked_versions_are_the_pinned_ones():
    """After a change of constraints.txt: make lock."""
    lines = (ROOT / ".ci/requirements.lock").read_text().replace("\\\n", "").splitlines()
    requirements = [line for line in lines if not line.startswith("#")]
    assert all("--hash=sha256:" in line for line in requirements)
    locked = dict(re.match(r"([\w.-]+)==(\S+)", line).groups() for line in requirements)

    def names(versions):  # the lock has other spellings
        return {re.sub(r"[-_.]", "-", name).lower(): v for name, v in versions.items()}

    assert names(PINNED).items() <= names(locked).items()


def test_ci_runs_every_version():
    """The pinned one at each push, the others weekly."""
    ci, weekly = (
        yaml.safe_load((ROOT / ".github/workflows" / name).read_text())["jobs"]["cpu"]
        for name in ("ci.yml", "torch.yml")
    )
    assert "torch" not in ci["strategy"]["matrix"]
    assert set(weekly["strategy"]["matrix"]["torch"]) == TABLE.keys() - {PINNED["torch"]}
    assert weekly["steps"][-1]["env"]["TORCH"] == "${{ matrix.torch }}"


def test_wheels_are_built_for_every_version():
    wheel = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())["jobs"]["wheel"]
    assert set(wheel["strategy"]["matrix"]["torch"]) == TABLE.keys()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    build = next(step for step in wheel["steps"] if "cibuildwheel" in step.get("run", ""))
    assert build["env"] == {"TORCH": "${{ matrix.torch }}"}
    assert "torch==$TORCH" in settings["before-build"]
    assert settings["linux"]["environment-pass"] == ["TORCH"]


@pytest.mark.parametrize("file", (ROOT / ".github/workflows").glob("*.yml"), ids=lambda f: f.name)
def test_workflows_cannot_write_to_the_repository(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in workflow["jobs"].values())


@pytest.mark.parametrize("file", (ROOT / ".github/workflows").glob("*.yml"), ids=lambda f: f.name)
def test_workflows_name_actions_by_commit(file):
    """A tag can be moved to other code."""
    used = re.findall(r"uses: *(\S+)", file.read_text())
    assert used
    assert [action for action in used if not re.search(r"@[0-9a-f]{40}$", action)] == []


DOCS = dict(
    re.findall(r"^\| ([\d.]+) \| ([\d.]+) \|", (ROOT / "docs/versions.md").read_text(), flags=re.M)
)


def test_docs_show_every_pair():
    assert DOCS == TABLE


def test_operators_name_the_versions_that_docs_show():
    """If torch lacks a private name, the error names the versions that have it."""
    assert set(re.findall(r"[\d.]+", TESTED)) == {version.rpartition(".")[0] for version in DOCS}
