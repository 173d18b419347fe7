"""The documentation site builds without warnings, works offline, and shows what it generates."""

import doctest
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from detectron2.config import get_cfg

from browser import faults_of, needs_chromium
from d2_deformable import add_deformable_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = [
    *(f"ops.{name}" for name in ("deform_conv2d", "deform_roi_align", "deform_roi_pool")),
    "ops.ps_roi_pool",
    *(f"layers.{name}" for name in ("conversion", "deform_conv2d", "deform_roi_align")),
    "layers.deform_roi_pool",
    *(f"layers.{name}" for name in ("offset_prediction", "ps_roi_pool")),
    "integrations.torchvision",
]


@pytest.fixture(scope="module")
def pages_extension():
    sys.path.insert(0, str(DOCS / "_ext"))
    yield import_module("pages")
    sys.path.remove(str(DOCS / "_ext"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / ".doctrees")]
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


class Page(HTMLParser):
    """The anchors of a page, the links to follow, and what a browser loads with it."""

    def __init__(self, file):
        super().__init__()
        self.anchors, self.links, self.loads = set(), [], []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif tag == "link" and attributes.get("rel") in ("stylesheet", "icon"):
            self.loads.append(attributes["href"])
        elif attributes.get("src"):
            self.loads.append(attributes["src"])


def test_local_links_and_anchors_exist(site):
    pages = {file: Page(file) for file in site.rglob("*.html")}
    assert len(pages) > 25
    for file, page in pages.items():
        for link in [*page.links, *page.loads]:
            url = urlsplit(link)
            if url.scheme:
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file
            assert target.is_file(), f"{file.name}: {link}"
            if url.fragment and target in pages:
                assert unquote(url.fragment) in pages[target].anchors, f"{file.name}: {link}"


def test_no_page_loads_from_elsewhere(site):
    for file in site.rglob("*.html"):
        assert not [load for load in Page(file).loads if urlsplit(load).netloc], file.name


@needs_chromium
@pytest.mark.slow
def test_pages_in_a_browser(site):
    assert not faults_of(site, [str(file.relative_to(site)) for file in site.rglob("*.html")])


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text()
    trees = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    lines = [line for tree in trees for line in tree.splitlines()]
    entries = [re.sub(r".*<(.*)>", r"\1", line) for line in lines if line and line[0] != ":"]
    files = [*DOCS.rglob("*.md"), *DOCS.glob("*.ipynb")]
    pages = {file.relative_to(DOCS).with_suffix("").as_posix() for file in files}
    assert sorted(entries) == sorted(pages - {"index"})


def keys_of(node, prefix=""):
    for key, value in node.items():
        if hasattr(value, "items") and value:
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_is_described(pages_extension):
    cfg = get_cfg()
    before = set(keys_of(cfg))
    add_deformable_config(cfg)
    text = pages_extension.config_keys((ROOT / "d2_deformable/config.py").read_text())
    assert "<" not in text  # a browser would take it for HTML
    described = {}
    for section in text.split("## ")[1:]:
        name, _, rest = section.partition("\n")
        for key, default in re.findall(r"^`(\w+)`: `(.*)`$", rest, re.MULTILINE):
            described[f"{name}.{key}"] = default
    assert described.keys() == set(keys_of(cfg)) - before
    assert described["MODEL.ROI_BOX_HEAD.DEFORM_GAMMA"] == "0.1"
    assert described["OFFSET_HEALTH.PERIOD"] == "20"
    assert "`DEFORM_NUM_LAYERS`: `0`\n: Number of the last 3x3 convolutions" in text


def test_links_of_an_included_page_are_moved(pages_extension):
    text = (
        "[zoo](MODEL_ZOO.md#by-name) [speed](docs/speed.md) ![x](docs/images/speed.png) "
        "[all](https://x.example) [a file](setup.py)\n```\n[a](b.md)\n```\n"
    )
    assert pages_extension.rewrite_links(text, ROOT, DOCS / "cpp") == (
        "[zoo](../model_zoo.md#by-name) [speed](../speed.md) ![x](../images/speed.png) "
        "[all](https://x.example) a file\n```\n[a](b.md)\n```\n"
    )


def test_a_notebook_becomes_a_page(pages_extension):
    stream = {"output_type": "stream", "name": "stdout", "text": ["2\n", "3\n"]}
    picture = {"output_type": "execute_result", "data": {"image/jpeg": "AAAA"}}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "[a](data.md) [b](../setup.py)"]},
        {"cell_type": "code", "source": ["a = 1\n", "a"], "outputs": [stream, picture]},
    ]
    assert pages_extension.notebook_text(json.dumps({"cells": cells}), DOCS / "some.ipynb") == (
        "# Title\n[a](data.md) b\n\n```python\na = 1\na\n```\n\n"
        "```{code-block} text\n:class: output\n\n2\n3\n```\n\n"
        "![output](data:image/jpeg;base64,AAAA)"
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings_run(name):
    results = doctest.testmod(import_module(f"d2_deformable.{name}"))
    assert results.attempted and not results.failed
