"""Paired differences, their intervals and the page, on synthetic counts."""

import json

import numpy as np
import pytest

from benchmarks.learning import page
from benchmarks.learning.contrasts import Contrast, bootstrapped, contrast, holm
from benchmarks.learning.endpoints import mean_iou, value
from benchmarks.learning.records import pack, path_of, unpack, write_json
from benchmarks.learning.study import TASKS, Run

TASK = "clothing_deeplab"


def counts(share, images=20, seed=0):
    """Counts for two classes of 100 pixels per image, about `share` of which is right."""
    right = np.random.default_rng(seed).binomial(100, share, (images, 2))
    predicted = right + (100 - right)[:, ::-1]
    return {"pixels": np.stack([right, predicted, np.full_like(right, 100)], axis=-1)}


def record(arm, branch, share, start="a", **more):
    """A record as benchmarks/learning/run.py writes it."""
    run = Run(TASK, 1, arm, branch)
    some = counts(share, seed=branch)
    dilation = {"res5.0.conv2": {size: [2.5, 0.1, 9] for size in page.SIZES}}
    return {
        "task": TASK,
        "arm": arm,
        "branch": branch,
        "start_sha256": start,
        "command": run.command,
        "parameters": 6_100_000,
        "test": {"mIoU": value("mIoU", some)},
        "counts": pack(some),
        "dilation": dilation,
        **more,
    }


def test_mean_iou():
    assert mean_iou(np.array([[50, 100, 50], [0, 0, 50], [0, 0, 0]])) == 25  # the last is absent


def test_counts_survive_packing():
    some = counts(0.8)
    unpacked = unpack(json.loads(json.dumps(pack(some))))
    assert np.array_equal(unpacked["pixels"], some["pixels"])


def test_a_contrast_pairs_arms_of_the_same_start_and_branch():
    records = [record("plain", k, 0.6) for k in (1, 2, 3)]
    records += [record("dconv3", k, 0.8) for k in (1, 2, 3)]
    records += [record("dconv3", 4, 0.9), record("plain", 4, 0.1, start="b")]
    found = contrast(records, TASK, "mIoU", "dconv3", "plain")
    expected = [b["test"]["mIoU"] - a["test"]["mIoU"] for a, b in zip(records[:3], records[3:6])]
    assert found.differences == pytest.approx(expected)
    assert found.interval[0] < found.mean < found.interval[1]
    assert found.bootstrap[0] < found.mean < found.bootstrap[1]
    assert found.verdict == "gain" and found.p < 0.05
    reverse = contrast(records, TASK, "mIoU", "plain", "dconv3")
    assert reverse.verdict == "loss" and reverse.mean == pytest.approx(-found.mean)


def test_the_gain_on_a_twin_is_subtracted():
    shares = {"plain": 0.6, "dconv3": 0.8}
    records = [record(arm, k, share) for arm, share in shares.items() for k in (1, 2, 3)]
    twins = [one | {"task": "twin"} for one in records]
    twins[3:] = [record("dconv3", k, 0.7) | {"task": "twin"} for k in (1, 2, 3)]
    gain = contrast(records, TASK, "mIoU", "dconv3", "plain")
    of_twin = contrast(twins, "twin", "mIoU", "dconv3", "plain")
    found = contrast(records + twins, TASK, "mIoU", "dconv3", "plain", "twin")
    expected = np.subtract(gain.differences, of_twin.differences)
    assert found.differences == pytest.approx(expected.tolist())
    assert found.bootstrap[0] < found.mean < found.bootstrap[1] < gain.mean
    assert contrast(records + twins[1:], TASK, "mIoU", "dconv3", "plain", "twin").differences == (
        pytest.approx(expected[1:].tolist())
    )


def test_one_repetition_proves_nothing():
    found = contrast(
        [record("plain", 1, 0.6), record("dconv3", 1, 0.9)], TASK, "mIoU", "dconv3", "plain"
    )
    assert found.interval is None and found.p is None and found.verdict == "one repetition"
    assert contrast([record("plain", 1, 0.6)], TASK, "mIoU", "dconv3", "plain") is None


def test_the_bootstrap_of_equal_arms_is_zero():
    some = [counts(0.7, seed=k) for k in range(3)]
    terms = [[(1, one), (-1, one)] for one in some]
    assert bootstrapped("mIoU", terms, draws=20) == (0, 0)


@pytest.mark.parametrize(
    ("differences", "interval", "p", "verdict"),
    [
        ((0.1, -0.1), (-0.9, 0.9), 0.8, "no difference"),
        ((3.0, 0.0), (-2.0, 5.0), 0.3, "undecided"),
        ((3.0, 2.8), (2.0, 3.6), 0.01, "gain"),
    ],
)
def test_verdicts(differences, interval, p, verdict):
    assert Contrast(TASK, "mIoU", "a", "b", differences, interval, interval, p).verdict == verdict


def test_holm():
    """Compare with the steps written out: 3 * .01, 2 * .02, and never less than the one before."""
    given = [
        Contrast(TASK, "mIoU", str(p), "", (), None, (0, 0), p) for p in (0.02, 0.01, 0.035, None)
    ]
    assert [c.p for c in holm(given)] == pytest.approx([0.04, 0.03, 0.04, None])


def test_equal_arms_have_no_p_below_one():
    records = [record(arm, k, 0.6) for arm in ("plain", "dconv3") for k in (1, 2)]
    found = contrast(records, TASK, "mIoU", "dconv3", "plain")
    assert (found.p, found.interval, found.verdict) == (1.0, (0, 0), "no difference")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs/images").mkdir(parents=True)
    names = ["contrasts", *(f"{task} {what}" for task in TASKS for what in ("arms", "dilation"))]
    blocks = [f"by hand: {n}\n<!-- begin {n} -->\nold\n<!-- end {n} -->\n" for n in names]
    (tmp_path / "docs/RESULTS.md").write_text("".join(blocks) + "the end\n")
    return tmp_path


def test_the_page_shows_the_records_and_keeps_its_text(root):
    page.write_page(root)
    blocks = 1 + 2 * len(TASKS)
    assert (root / "docs/RESULTS.md").read_text().count("Not measured yet.") == blocks
    assert not (root / page.FOREST).exists()
    for arm, share, more in (
        ("plain", 0.6, {}),
        ("dconv3", 0.8, {"zero_offsets": {"mIoU": 41.26}}),
    ):
        write_json(path_of(root, Run(TASK, 1, arm, 1)), record(arm, 1, share, **more))
    for _ in range(2):  # the second time changes nothing
        page.write_page(root)
        text = (root / "docs/RESULTS.md").read_text()
        assert text.startswith("by hand: contrasts\n") and text.endswith("the end\n")
        assert "old" not in text and text.count("Not measured yet.") == blocks - 3
        assert text.count("| one repetition |") == 1
        assert "| 41.3 " in text and "| 6.10 M " in text
        assert "| 3 deformable layers | res5.0.conv2 | 2.50 " in text
    assert not (root / page.FOREST).exists()  # of several repetitions only
    several = [Contrast(TASK, "mIoU", "dconv3", "plain", (1.0, 2.0), (-4.9, 7.9), (1, 2), 0.2)]
    page.forest_plot(several).savefig(root / page.FOREST)
    assert (root / page.FOREST).stat().st_size > 1000


def test_records_of_another_command_are_left_out(root):
    write_json(path_of(root, Run(TASK, 1, "plain", 1)), record("plain", 1, 0.6) | {"command": ""})
    assert page.read_records(root) == []


def test_a_page_without_a_block_is_an_error(root):
    (root / "docs/RESULTS.md").write_text("<!-- begin contrasts -->")
    with pytest.raises(ValueError, match="no block <!-- begin contrasts -->"):
        page.write_page(root)


def test_mean_and_spread():
    assert page.mean_and_spread([41.26]) == "41.3"
    assert page.mean_and_spread([40.0, 42.0]) == "41.0 ± 1.4"
