"""The targets that read files, with content of the right form but any values (hypothesis)."""

import json

import pytest

from fuzz import data_sets, indexes, runs

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
usual = hypothesis.settings(max_examples=150, deadline=None, database=None)

TEXTS = st.sampled_from(
    ["", ".", "..", "a", "a.png", "./a.png", "../images/a.png", "../../outside.png", "/", "a/", "~"]
) | st.text(max_size=8)
NUMBERS = (
    st.sampled_from([0, 1, 2, 8, 16, -1, 0.5, 1e9, 1e308, -1e308, 10**30, 2**63, True])
    | st.floats()
    | st.integers()
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def mostly(usual):
    """Usual values, and one in ten of any kind."""
    return st.integers(0, 9).flatmap(lambda n: usual if n else VALUES)


def objects(**fields):
    return st.fixed_dictionaries({}, optional={k: mostly(v) for k, v in fields.items()})


IDS = st.integers(0, 3)
IMAGES = objects(id=IDS, file_name=TEXTS, width=NUMBERS | st.just(16), height=st.just(8))
SHAPES = (
    st.lists(st.lists(NUMBERS, max_size=8), max_size=2)
    | objects(size=st.just([8, 16]), counts=st.lists(NUMBERS, max_size=4) | TEXTS)
)  # fmt: skip
ANNOTATIONS = objects(
    id=IDS,
    image_id=IDS,
    category_id=IDS,
    bbox=st.lists(NUMBERS, min_size=4, max_size=4),
    segmentation=SHAPES,
    keypoints=st.lists(NUMBERS, max_size=6),
    iscrowd=st.integers(0, 1),
    difficult=st.integers(0, 1),
)
COCO = st.fixed_dictionaries(
    {
        "images": mostly(st.lists(IMAGES, max_size=3)),
        "annotations": mostly(st.lists(ANNOTATIONS, max_size=3)),
        "categories": mostly(st.lists(objects(id=IDS, name=TEXTS), max_size=3)),
    }
)


@usual
@hypothesis.given(COCO)
def test_coco(content):
    data_sets.one_input(b"\0" + json.dumps(content).encode())


@usual
@hypothesis.given(objects(path=TEXTS, train=TEXTS | st.lists(TEXTS), names=st.lists(TEXTS)))
def test_yolo(content):
    data_sets.one_input(b"\3" + json.dumps(content).encode())


@usual
@hypothesis.given(st.lists(st.lists(NUMBERS | TEXTS, max_size=7), max_size=4), st.integers(0, 6))
def test_tables(rows, form):
    separator = "," if form == 5 else " "
    text = "\n".join(separator.join(map(str, row)) for row in rows)
    data_sets.one_input(bytes([form]) + text.encode(errors="replace"))


@usual
@hypothesis.given(
    st.lists(NUMBERS | TEXTS, min_size=6, max_size=6), st.text(max_size=5), st.integers(0, 9)
)
def test_voc(values, other, position):
    tags = ("width", "height", "xmin", "ymin", "xmax", "ymax")
    width, height, *corners = (f"<{tag}>{v}</{tag}>" for tag, v in zip(tags, values))
    text = (
        f"<annotation><filename>{other}</filename><size>{width}{height}</size><object>"
        f"<name>nut</name><bndbox>{''.join(corners)}</bndbox></object></annotation>"
    )
    place = len(text) * position // 10
    data_sets.one_input(b"\1" + (text[:place] + other + text[place:]).encode(errors="replace"))


@usual
@hypothesis.given(
    st.dictionaries(
        st.sampled_from(["a/b.pth", "a/c.pth", "../b.pth"]) | TEXTS,
        objects(config=st.just("a.yaml") | TEXTS, sha256=st.just("0" * 64), url=TEXTS, AP=NUMBERS),
        max_size=3,
    )
)
def test_indexes(content):
    indexes.one_input(json.dumps(content).encode())


LINES = objects(iteration=IDS, total_loss=NUMBERS, time=NUMBERS, lr=NUMBERS) | st.dictionaries(
    st.sampled_from(["iteration", "bbox/AP", "voc/AP50-a/b", "a/sem_seg/mIoU"]), VALUES
)


@usual
@hypothesis.given(st.lists(LINES, max_size=4))
def test_metrics(lines):
    runs.one_input(b"\0" + "\n".join(map(json.dumps, lines)).encode())


@usual
@hypothesis.given(
    st.lists(
        objects(
            image_id=st.just(1),
            category_id=st.just(0),
            bbox=st.lists(NUMBERS, min_size=4, max_size=4),
            score=NUMBERS,
        ),
        max_size=3,
    )
)
def test_results(rows):
    runs.one_input(b"\2" + json.dumps(rows).encode())
