"""File names in csrc: one stem finds one thing, whatever folder it lies in."""

from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def shared_stems(paths):
    """{stem: paths} of stems that occur in several folders. x.h beside x.cpp is one thing."""
    found = defaultdict(list)
    for path in paths:
        found[path.stem].append(path)
    return {
        stem: paths for stem, paths in found.items() if len({path.parent for path in paths}) > 1
    }


def sources():
    paths = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert len(paths) > 50
    return paths


def test_file_names_in_csrc_are_unique():
    assert not shared_stems(sources())


def test_a_planted_duplicate_is_found():
    planted = ROOT / "csrc" / "cuda" / "deform_conv2d_sizes.h"
    assert list(shared_stems([*sources(), planted])) == ["deform_conv2d_sizes"]
