"""README's commands run, its YAML is valid, and its links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg

import train_net
from d2_deformable import add_deformable_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


COMMANDS = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
PYTHON = [command for command in COMMANDS if command.startswith(("python ", "d2-deformable "))]
ONE_PROCESS = [command for command in PYTHON if "--num-gpus" not in command]
MANY = [command for command in PYTHON if "--num-gpus" in command]


def test_commands_run(tmp_path, monkeypatch):
    """Runs in README's order, as a user would: a command may need the output of earlier ones."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    small = (
        "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 "
        "DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES 4 "
        "DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES 2"
    )
    assert len(ONE_PROCESS) == 10
    for command in ONE_PROCESS:
        command = command.replace("d2-deformable ", "python -m d2_deformable ")
        arguments = [a.replace("configs/", f"{ROOT}/configs/") for a in shlex.split(command)[1:]]
        if arguments[0] == "train_net.py":
            arguments = [str(ROOT / arguments[0]), *arguments[1:], *small.split()]
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    for file in ("model_final.pth", "metrics.json", "report.html"):
        assert (tmp_path / "output" / file).is_file()


@pytest.mark.parametrize("command", MANY)
def test_multi_gpu_commands_parse(command):
    args = train_net.parse_args(shlex.split(command)[2:])
    assert args.num_gpus > 1 and (ROOT / args.config_file).is_file()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make ([a-z-]+)", " ".join(COMMANDS)) + re.findall(
        r"`make ([a-z-]+)`", README
    )
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_yaml_is_understood(tmp_path):
    for text in blocks("yaml"):
        base = yaml.safe_load(text)["_BASE_"]
        assert (ROOT / "configs/quick" / base).is_file()
        path = tmp_path / "readme.yaml"
        path.write_text(text.replace(base, str(ROOT / "configs/quick" / base)))
        cfg = get_cfg()
        add_deformable_config(cfg)
        cfg.merge_from_file(str(path))


def test_python_runs():
    for code in blocks("python"):
        exec(code, {})


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        file = ROOT / target.partition("#")[0]
        assert target.startswith("https://") or file.exists(), target
