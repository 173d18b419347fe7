"""File names in csrc: a stem identifies one thing in any folder."""

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def shared_stems(paths):
    """{stem: paths} of stems that occur in several folders. x.h next to x.cpp is one thing."""
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


def without_comments(code):
    """C++ source without its comments."""
    return re.sub(r"//.*?$|/\*.*?\*/", "", code, flags=re.M | re.S)


def missing_from_csrc(readme):
    """Files and functions that the text names but the code of csrc does not have."""
    names = re.findall(r"`([^`\n]+)`", readme) + re.findall(r"^    .+", readme, flags=re.M)
    files = {name for name in names if re.fullmatch(r"[\w/<>*.]+(/|\.\w+)", name)}
    functions = set(re.findall(r"[a-zA-Z]+_\w+|\w*[A-Z]\w*", "\n".join({*names} - files)))
    code = "\n".join(path.read_text() for path in sources() if path.suffix != ".md")
    absent = {name for name in files if not [*(ROOT / "csrc").rglob(name.replace("<op>", "*"))]}
    absent |= functions - set(re.findall(r"\w+", without_comments(code)))
    return absent, len(files), len(functions)


def test_csrc_readme_names_what_exists():
    """All files and functions that csrc/README.md names; `<op>` and `*` stand for any text."""
    absent, files, functions = missing_from_csrc((ROOT / "csrc" / "README.md").read_text())
    assert files > 20 and functions > 20
    assert not absent


def test_names_that_stand_in_comments_alone_are_found():
    comment = "ATEN_CPU_CAPABILITY"
    assert any(comment in path.read_text() for path in sources())
    absent, _, _ = missing_from_csrc(f"`{comment}`, `deform_conv2d_cpu`, `planted.h`")
    assert absent == {comment, "planted.h"}
