"""Configs as text: reading what was written gives the same config."""

import yaml

from d2_deformable.utils.config_text import to_yaml


def test_text_reads_back():
    tree = {
        "A": {"TEXT": "07", "PATH": "a: b # c", "EMPTY": "", "FLAGS": [True, None], "WORD": "no"},
        "B": {"LIST": (1, 2.5), "NESTED": [["a.b", 10.0], ["c", 0.1]], "NAMES": ["é", "x y"] * 40},
        "C": {"D": {"E": 1e-05}},
        "LONG": "word " * 60,
    }
    text = to_yaml(tree, {})
    expected = tree | {"B": tree["B"] | {"LIST": [1, 2.5]}}
    assert yaml.safe_load(text) == expected
    assert max(map(len, text.splitlines())) <= 110


def test_comments_stand_above_their_keys():
    text = to_yaml({"A": {"B": 1, "C": 2}}, {"A": "First.", "A.C": "A long reason. " * 10})
    lines = text.splitlines()
    assert lines[:3] == ["# First.", "A:", "  B: 1"]
    assert lines[3].startswith("  # A long") and lines[4].startswith("  # ")
    assert lines[-1] == "  C: 2" and yaml.safe_load(text) == {"A": {"B": 1, "C": 2}}


def test_a_comment_ends_where_its_line_does():
    """The name of a class, in a comment, must not become a key."""
    for end in ("\n", "\r", "\x85", "\u2028", "\u2029", "\x0b", "\x0c"):
        text = to_yaml({"A": 1}, {"A": f"left out: cat{end}B: 2"})
        assert yaml.safe_load(text) == {"A": 1}, repr(end)
