"""Configs merged from files, which may be hostile, and differences of configs."""

import pytest
from detectron2.config import CfgNode, get_cfg

from d2_deformable.utils.config_files import difference, merge_from_file

ALIASES = ["A0: &a0 [" + "1, " * 10 + "]"]
ALIASES += [f"A{i}: &a{i} [" + f"*a{i - 1}, " * 10 + "]" for i in range(1, 9)]
HOSTILE = {
    "code": (
        "OUTPUT_DIR: !!python/object/apply:os.system [touch {folder}/ran]",
        "{folder}/t.yaml, line 1: .*apply:os.system.*A YAML must not run code: write the value out",
    ),
    "base_code": ("_BASE_: code.yaml", "{folder}/code.yaml, line 1: .*must not run code"),
    "tuple": ("A: !!python/tuple [1]", "must not run code"),
    "base_of_itself": ("_BASE_: t.yaml", "more than 100 files, {folder}/t.yaml among them"),
    "twice": ("_BASE_: [0.yaml, 0.yaml]", "more than 100 files"),
    "aliases": ("\n".join(ALIASES), "t.yaml has 1234567909 values through its aliases"),
    "alias_of_itself": ("A: &a [*a]", "through its aliases"),
    "deep": ("A: " + "[" * 5000, "t.yaml, or what it builds on, is nested too deeply"),
    "deep_keys": ("A: " + "{a: " * 480 + "1" + "}" * 480, "is nested too deeply"),
    "long": ("A: " + "x" * 2_000_000, "t.yaml has more than 1000000 characters"),
    "key": ("? [1]\n: 2", "t.yaml, line 1: found unhashable key$"),
    "encoding": (b"\xff\xfe\0", "not utf-8 text"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_is_refused(tmp_path, name):
    content, message = HOSTILE[name]
    for i in range(27):
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]")
    (tmp_path / "27.yaml").write_text("VERSION: 2")
    (tmp_path / "code.yaml").write_text(HOSTILE["code"][0].format(folder=tmp_path))
    content = content if isinstance(content, bytes) else content.encode()
    file = tmp_path / "t.yaml"
    file.write_bytes(content.replace(b"{folder}", str(tmp_path).encode()))
    with pytest.raises(ValueError, match=message.format(folder=tmp_path)):
        merge_from_file(get_cfg(), file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["_BASE_: {folder}", "_BASE_: no.yaml"])
def test_a_file_that_is_missing_is_named(tmp_path, content):
    (tmp_path / "t.yaml").write_text(content.format(folder=tmp_path))
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/t.yaml builds on .* no such file"):
        merge_from_file(get_cfg(), tmp_path / "t.yaml")
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}: there is no such file"):
        merge_from_file(get_cfg(), tmp_path)


def test_small_aliases_and_chains_are_merged(tmp_path):
    for i in range(50):
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: {i + 1}.yaml")
    (tmp_path / "50.yaml").write_text("DATASETS: {TRAIN: &names [a, b], TEST: *names}")
    cfg = get_cfg()
    merge_from_file(cfg, tmp_path / "0.yaml")
    assert cfg.DATASETS.TEST == ("a", "b")


def test_only_differences_are_kept():
    default = CfgNode({"A": 1, "B": {"C": (1, 2), "D": "x"}, "E": {"F": 0}})
    cfg = default.clone()
    cfg.B.C = (1, 3)
    cfg.E = CfgNode({"F": 0, "G": {"H": 1}})
    assert difference(cfg, default) == {"B": {"C": [1, 3]}, "E": {"G": {"H": 1}}}
    assert difference(default, default) == {}
    assert difference(default, default, keep={"B.D"}) == {"B": {"D": "x"}}
