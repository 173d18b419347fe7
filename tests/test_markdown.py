"""The Markdown pages: code blocks run or parse, configs merge, and links lead somewhere.

On the pages of RUN, ```bash and ```python blocks run in order, as a user would run them; ```sh
blocks, and the commands of all other pages, are only parsed.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import train_net
from d2_deformable.cli.main import COMMANDS
from d2_deformable.config import read_config

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "MODEL_ZOO.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "SECURITY.md",
    *(ROOT / name for name in ("csrc/README.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
RUN = [ROOT / f"docs/{name}.md" for name in ("getting_started", "predict", "analyses", "export")]
# "yml" is the YAML of other programs.
LANGUAGES = ["bash", "json", "python", "sh", "text", "yaml", "yml", "{eval-rst}", "{toctree}"]
# What keeps a command that trains or evaluates short.
SMALL = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"]
SMALL += ["DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES", "4"]
SMALL += ["DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES", "2"]
# Runs the steps of a page in one process, since importing Detectron2 takes seconds.
DRIVER = """
import json, sys
from d2_deformable.cli.main import main
for kind, step in json.load(sys.stdin):
    print("step:", step, flush=True)
    main(step) if kind == "command" else exec(step, {})
"""


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """(language, text) of the page's code blocks, in order; default: all of them."""
    found = re.findall(r"^ *```(\S+)\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [(kind, text) for kind, text in found if not languages or kind in languages]


def command_lines(text):
    """The words of each command of a shell script."""
    return [
        shlex.split(line, comments=True)
        for line in text.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def our_arguments(words):
    """The arguments of d2-deformable if `words` calls it, train_net.py included, else None."""
    if words[:2] == ["python", "train_net.py"]:
        return ["train", *words[2:]]
    if "d2_deformable" in words and words[0] == "torchrun":
        return words[words.index("d2_deformable") + 1 :]
    return words[1:] if words[:1] == ["d2-deformable"] else None


def command_name(arguments):
    """The longest name in COMMANDS that the arguments begin with."""
    names = [" ".join(arguments[:n]) for n in (2, 1)]
    assert set(names) & COMMANDS.keys(), f"no such command: {names[0]}"
    return next(name for name in names if name in COMMANDS)


def parse(arguments):
    name = command_name(arguments)
    parser = import_module(f"d2_deformable.cli.{COMMANDS[name][0]}").parser()
    rest = arguments[len(name.split()) :]
    try:
        return parser.parse_intermixed_args(rest)
    except TypeError:
        return parser.parse_args(rest)


def all_commands(page):
    for _, text in blocks(page, "bash", "sh"):
        yield from filter(None, map(our_arguments, command_lines(text)))


WITH_COMMANDS = [page for page in PAGES if any(all_commands(page))]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_parse(page):
    """They name existing configs, and their KEY VALUE pairs fit."""
    for arguments in all_commands(page):
        args = parse(arguments)
        files = getattr(args, "config_file", None) or []
        for file in [files] if isinstance(files, str) else files:
            if file.startswith("configs/"):
                read_config(ROOT / file, getattr(args, "opts", ()))


def test_train_net_takes_the_same_arguments():
    args = train_net.parse_args(["--config-file", "a.yaml", "--num-gpus", "8", "SEED", "1"])
    assert args.opts == parse(["train", "--config-file", "a.yaml", "SEED", "1"]).opts


def steps_of(page):
    """The page's commands and Python blocks, in order."""
    steps = []
    for kind, text in blocks(page, "bash", "python"):
        if kind == "python":
            steps.append(("python", text))
            continue
        for arguments in filter(None, map(our_arguments, command_lines(text))):
            uses_data = arguments[0] == "train" or "--weights" in arguments
            steps.append(("command", arguments + SMALL * uses_data))
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_page_runs(page, tmp_path):
    steps = steps_of(page)
    for folder in ("configs", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DETECTRON2_DATASETS": str(tmp_path / "datasets"),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(steps),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert result.stdout.count("step: ") == len(steps) > 0


TESTED = [*RUN, ROOT / "README.md"]  # by tests of their own
WITH_PYTHON = [page for page in PAGES if page not in TESTED and blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_runs(page, tmp_path, monkeypatch):
    for folder in ("configs", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    for _, code in blocks(page, "python"):
        exec(code, {})


def test_readme_finds_the_shapes_of_its_picture(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    (_, code), *_ = blocks(ROOT / "README.md", "python")
    exec(code, {})
    shown = capsys.readouterr().out
    assert {line.split()[0] for line in shown.splitlines()} == {"cross", "triangle", "crescent"}
    assert Path("found.png").is_file()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shell_and_data_parse(page):
    """And no block has a language that no test looks at."""
    assert {kind for kind, _ in blocks(page)} <= set(LANGUAGES)
    for _, text in blocks(page, "json"):
        json.loads(text)
    for _, text in blocks(page, "yml"):
        yaml.safe_load(text)
    scripts = "\n".join(text for _, text in blocks(page, "bash", "sh"))
    checked = subprocess.run(["bash", "-n"], input=scripts, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


WITH_YAML = [page for page in PAGES if blocks(page, "yaml")]


@pytest.mark.parametrize("page", WITH_YAML, ids=name_of)
def test_yaml_is_understood(page, tmp_path):
    for _, text in blocks(page, "yaml"):
        if base := yaml.safe_load(text).get("_BASE_"):
            text = text.replace(base, str(next((ROOT / "configs").rglob(base))))
        (tmp_path / "page.yaml").write_text(text)
        read_config(tmp_path / "page.yaml")


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test", "docs"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file = page.parent / target.partition("#")[0]
        assert target.startswith(("https://", "#")) or file.exists(), target


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
