"""docs/RESULTS.md: its tables and pictures, made from the JSONs of docs/results.

Each stands in a block between two comments; what is written by hand around the blocks stays.
"""

import json
import re
import statistics
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from .draw import INK, class_color
from .results import RESULTS, ROWS

PAGE = Path("docs/RESULTS.md")
# Of each data set: the evaluator's name in results, and the metrics shown.
METRICS = {
    "cards": ("voc", ("AP", "AP50", "AP70")),
    "dubai_seg": ("sem_seg", ("mIoU", "pACC")),
}
NETWORKS = {
    "rfcn": "R-FCN",
    "faster_rcnn": "Faster R-CNN",
    "class_aware_rpn": "class-aware RPN",
    "deeplab": "DeepLab",
}


def write_page(root) -> None:
    """Bring the blocks of docs/RESULTS.md and docs/results/<data set>.png up to date.

    Raises:
        ValueError: the page lacks the comments of a block.
    """
    root = Path(root)
    runs = [json.loads(file.read_text()) for file in sorted((root / RESULTS).glob("*.json"))]
    text = (root / PAGE).read_text()
    for dataset in METRICS:
        some = [run for run in runs if run["dataset"] == dataset]
        text = _with_block(text, dataset, _block(dataset, some) if some else "Not measured yet.")
        if some:
            loss_curves(some).savefig(root / RESULTS / f"{dataset}.png")
    (root / PAGE).write_text(text)


def _with_block(text, name, content):
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    found = re.search(f"{begin}.*?{end}", text, re.DOTALL)
    if not found:
        raise ValueError(f"{PAGE} lacks a block {begin} ... {end} for its tables: add one")
    return f"{text[: found.start()]}{begin}\n{content}\n{end}{text[found.end() :]}"


def _block(dataset, runs):
    picture = f"![Total loss of each row](results/{dataset}.png)"
    parts = [_table(dataset, runs), picture, _offsets(runs), _facts(runs)]
    return "\n\n".join(part for part in parts if part)


def by_row(runs) -> dict[tuple[str, str], list[dict]]:
    """{(network, variant in words): its runs}, in the order of the queue; others behind."""
    order = [(row.network, _in_words(row.variant, row.control)) for row in ROWS]
    groups = {}
    for run in runs:
        row = (run["network"], _in_words(run["variant"], run["control"]))
        groups.setdefault(row, []).append(run)
    return dict(
        sorted(groups.items(), key=lambda g: (order.index(g[0]) if g[0] in order else 999, g[0]))
    )


def _in_words(variant, control):
    return ", ".join(filter(None, (variant or "plain", control and control.replace("_", " "))))


def _table(dataset, runs):
    task, metrics = METRICS[dataset]
    lines = []
    for (network, variant), some in by_row(runs).items():
        values = ([run["results"][task][metric] for run in some] for metric in metrics)
        lines.append([NETWORKS[network], variant, *map(mean_and_spread, values), len(some)])
    headers = ["network", "variant", *metrics, "seeds"]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def _offsets(runs):
    """What `engine.OffsetHealth` saw last, the mean over seeds; "" where nothing is deformable."""
    lines = []
    for (network, variant), some in by_row(runs).items():
        layers = [key.split("/")[1] for key in some[0]["offsets"] if key.endswith("/p99")]
        for layer in layers:
            mean, p99, outside = (
                statistics.mean(run["offsets"][f"offsets/{layer}/{name}"] for run in some)
                for name in ("mean", "p99", "outside")
            )
            lines.append(
                [NETWORKS[network], variant, layer, f"{mean:.3f}", f"{p99:.3f}", f"{outside:.1%}"]
            )
    if not lines:
        return ""
    headers = ["network", "variant", "layer", "mean", "99th percentile", "outside the map"]
    table = tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)
    return (
        "Length of the offsets at the end of training, in cells of the feature map (of RoI layers: "
        f"in RoI sizes), and the share of samples outside the map:\n\n{table}"
    )


def mean_and_spread(values) -> str:
    """Mean and sample standard deviation, "41.3 ± 0.8"; the one value where there is one only."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _facts(runs):
    facts = [
        (name, ", ".join(sorted({str(run[key]) for run in runs})))
        for name, key in (
            ("Iterations", "iterations"),
            ("Machine", "machine"),
            ("Versions", "versions"),
            ("Commit", "commit"),
        )
    ]
    first = next(iter(by_row(runs).values()))[0]
    lines = [f"- {name}: {value}" for name, value in facts]
    return "\n".join([*lines, f"- Command of the first row: `{first['command']}`"])


def loss_curves(runs) -> Figure:
    """total_loss over iterations, a panel per network, a line per variant: the mean over seeds."""
    rows = by_row(runs)
    networks = list(dict.fromkeys(network for network, _ in rows))
    figure = Figure(figsize=(4.5 * len(networks), 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    variants = list(dict.fromkeys(variant for _, variant in rows))
    for network, axes in zip(networks, panels, strict=True):
        for (of, variant), some in rows.items():
            if of == network:
                color = INK if variant == "plain" else class_color(variants.index(variant) - 1)
                axes.plot(*_mean_curve(some), color=color, label=variant)
        axes.set(title=NETWORKS[network], xlabel="iteration", yscale="log")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("total loss")
    return figure


def _mean_curve(runs):
    at = [iteration for iteration, _ in runs[0]["loss"]]
    curves = [dict(run["loss"]) for run in runs]
    return at, [statistics.mean(c[i] for c in curves if i in c) for i in at]
