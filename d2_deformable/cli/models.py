"""List the networks of the model zoo: task, parameters, test size, AP and checkpoint."""

import json

from .. import model_zoo
from . import command

EXAMPLE = """
A network's parameters are counted if words are given, or with --parameters (takes half a minute
for all networks). `d2-deformable models show NAME` prints a config.

example:
  d2-deformable models VOC rfcn_R_101
"""
# Short enough for a table of 100 columns.
TASKS = {
    "instance segmentation": "instance segm.",
    "semantic segmentation": "semantic segm.",
    "panoptic segmentation": "panoptic segm.",
}
HEADER = ("network", "task", "params", "test size", "AP")


def parser():
    parser = command.parser("models", __doc__, EXAMPLE)
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only networks with all of these in their name"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with more fields")
    parser.add_argument("--parameters", action="store_true", help="count parameters of all")
    return parser


def main(args):
    words = [word.lower() for word in args.words]
    names = [n for n in model_zoo.list_configs() if all(word in n.lower() for word in words)]
    if not names:
        raise ValueError(f"no network has {' and '.join(args.words)} in its name")
    parameters = args.parameters or bool(words)
    found = [model_zoo.summary(name, parameters) for name in names]
    print(json.dumps(found, indent=1) if args.json else table(found))


def table(networks: list[dict]) -> str:
    """Format summaries as a table, each checkpoint below its network."""
    rows = [HEADER, *map(cells, networks)]
    if all(network["parameters"] is None for network in networks):
        rows = [row[:2] + row[3:] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row, network in zip(rows, [{"checkpoint": None}, *networks]):
        aligned = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        aligned += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:])]
        lines.append("  ".join(aligned).rstrip())
        if network["checkpoint"]:
            lines.append(f"  {network['checkpoint']}")
    trained = sum(network["checkpoint"] is not None for network in networks)
    lines += [
        "",
        f"{len(networks)} networks, {trained or 'none'} with a checkpoint"
        + (" (below its network), tested on the test set of its config." if trained else "."),
        "Test size: shorter side of the image/limit of the longer side. AP: of the checkpoint.",
    ]
    return "\n".join(lines)


def cells(network: dict) -> tuple[str, ...]:
    """Format a summary as the cells of `HEADER`."""
    sizes, limit = network["test_sizes"], network["max_size"]
    size = f"{len(sizes)} scales" if len(sizes) > 1 else f"{sizes[0]}/{limit}"
    return (
        network["name"].removesuffix(".yaml"),
        TASKS.get(network["task"], network["task"]),
        f"{network['parameters'] / 1e6:.1f}M" if network["parameters"] else "",
        size if sizes[0] else "unchanged",
        "" if network["AP"] is None else f"{network['AP']:.1f}",
    )
