"""Time and memory of a training step, against each number that it grows with.

    python -m benchmarks.growth --json benchmarks/results/growth.json --plot docs/images/growth.png

The network is the quick deformable R-FCN (ResNet-18 of half width), on noise with random boxes. One
number changes at a time; the others stay those of `Step`. A step is the forward and backward pass
and the optimizer's update, on one thread. Each row is measured in a process of its own: the median
CPU time of the steps, which other processes hardly change, and the peak of the memory beyond that
of the imported modules. Several processes talk by gloo, each with the whole batch of one; their
times are wall-clock times. It takes about 5 minutes and needs Linux.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_deformable.config import read_config
from d2_deformable.engine import build_optimizer
from d2_deformable.engine.launch import leaving_process_group
from d2_deformable.layers import DeformConv2d
from d2_deformable.modeling import build_model

from .draw_growth import draw
from .fresh import in_fresh_process, peak_mib, resident_mib
from .protocol import digits
from .results import Results, settings
from .table import terminal

CONFIG = Path(__file__).parents[1] / "configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
OBJECTS = 8  # of an image
FIRST, LEAST, MOST = 2, 5, 30  # steps: not timed, timed at least, timed at most


@dataclass(frozen=True)
class Step:
    """What a training step grows with.

    Args:
        side: of the square images, in pixels.
        batch: images of a process.
        rois: RoIs that are trained on, of an image.
        classes: foreground classes.
        groups: offset groups of the three deformable convolutions.
        processes: that train together, each with `batch` images.
    """

    side: int = 224
    batch: int = 1
    rois: int = 128
    classes: int = 20
    groups: int = 1
    processes: int = 1

    def model(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        rois, rpn = str(self.rois), "MODEL.RPN"
        options = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", str(self.classes)]
        options += ["MODEL.RESNETS.DEFORM_NUM_GROUPS", str(self.groups)]
        # Without NMS, the RPN always gives as many proposals as it may.
        options += [f"{rpn}.NMS_THRESH", "1.0", f"{rpn}.PRE_NMS_TOPK_TRAIN", "2000"]
        options += [
            f"{rpn}.POST_NMS_TOPK_TRAIN",
            rois,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
            rois,
        ]
        cfg = read_config(CONFIG, options)
        torch.manual_seed(0)
        model = build_model(cfg).train()
        for layer in model.modules():
            if isinstance(layer, DeformConv2d):
                nn.init.normal_(layer.conv_offset.weight, std=0.01)
        return model, build_optimizer(cfg, model)

    def draw(self) -> list[dict]:
        """Draw the images of one process, in Detectron2's input format."""
        size = self.side, self.side
        images = []
        for _ in range(self.batch):
            corners = torch.rand(OBJECTS, 2) * 0.5 * self.side
            sides = (0.1 + 0.4 * torch.rand(OBJECTS, 2)) * self.side
            boxes = Boxes(torch.cat([corners, corners + sides], 1))
            classes = torch.randint(self.classes, (OBJECTS,))
            instances = Instances(size, gt_boxes=boxes, gt_classes=classes)
            noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
            images.append({"image": noise, "instances": instances})
        return images


@dataclass(frozen=True)
class Sweep:
    """The values of one number.

    Args:
        values: each about twice the one before, in what it is proportional to.
        size: what cost should be proportional to, beyond a fixed part.
    """

    field: str
    values: tuple[int, ...]
    size: Callable[[int], int] = int

    def steps(self) -> list[Step]:
        return [replace(Step(), **{self.field: value}) for value in self.values]


SWEEPS = {
    "pixels": Sweep("side", (160, 224, 320, 448, 640), lambda side: side**2),
    "images of a batch": Sweep("batch", (1, 2, 4, 8)),
    "RoIs of an image": Sweep("rois", (128, 256, 512, 1024)),
    "classes": Sweep("classes", (10, 20, 40, 80)),
    "offset groups": Sweep("groups", (1, 2, 4, 8)),
    "processes": Sweep("processes", (1, 2, 4)),
}


def measure(fields: dict, seconds: float, clock: str) -> dict:
    """Measure one row in this process, whose memory must not hold other things.

    Args:
        fields: of `Step`.
        seconds: about as long steps are timed.
        clock: a function of the module `time`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if fields["processes"] == 1:
            _one_process(0, fields, seconds, clock, folder)
        else:
            mp.spawn(_one_process, (fields, seconds, clock, folder), fields["processes"])
        rows = [torch.load(file) for file in sorted(Path(folder).glob("*.pt"))]
    return {
        "ms": digits(1e3 * max(row["seconds"] for row in rows)),
        "mib": digits(statistics.mean(row["mib"] for row in rows)),
        "all_reduce_ms": digits(1e3 * max(row["all_reduce"] for row in rows)),
    }


def _one_process(rank: int, fields: dict, seconds: float, clock: str, folder: str) -> None:
    torch.set_num_threads(1)
    step = Step(**fields)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=step.processes)
    with leaving_process_group():
        row = _time_steps(step, rank, seconds, partial(_seconds, getattr(time, clock)))
        torch.save(row, f"{folder}/{rank}.pt")


def _time_steps(step: Step, rank: int, seconds: float, timed: Callable) -> dict[str, float]:
    before = resident_mib()
    model, optimizer = step.model()
    trained = [p for p in model.parameters() if p.requires_grad]
    if step.processes > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False)
    torch.manual_seed(rank)
    images = step.draw()
    with EventStorage():
        times = [timed(lambda: _train(model, optimizer, images)) for _ in range(FIRST)]
        # All processes make as many steps.
        planned = torch.tensor([seconds / times[-1]]).clamp(LEAST, MOST)
        dist.all_reduce(planned, dist.ReduceOp.MIN)
        steps = range(int(planned.item()))
        times = [timed(lambda: _train(model, optimizer, images)) for _ in steps]
    peak = peak_mib()
    gradients = torch.cat([p.grad.flatten() for p in trained])
    exchange = [timed(lambda: dist.all_reduce(gradients)) for _ in range(LEAST)]
    row = {"seconds": statistics.median(times), "mib": peak - before}
    row["all_reduce"] = statistics.median(exchange) if step.processes > 1 else 0.0
    return row


def _train(model, optimizer, images: list[dict]) -> None:
    optimizer.zero_grad()
    sum(model(images).values()).backward()
    optimizer.step()


def _seconds(clock: Callable, call: Callable) -> float:
    start = clock()
    call()
    return clock() - start


def line(sizes, costs) -> tuple[float, float, float, float]:
    """Fit cost = fixed + rate * size.

    Returns:
        fixed, rate, the largest difference from the line relative to the cost there, and the
        exponent between the last two sizes: 1 if the cost doubles with the size, 0 if it stays.
    """
    sizes, costs = np.asarray(sizes, float), np.asarray(costs, float)
    # Relative errors count, so that the smallest size counts as much as the largest.
    columns = np.stack([np.ones(len(sizes)), sizes], 1) / costs[:, None]
    fixed, rate = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)[0]
    off = np.abs(fixed + rate * sizes - costs) / costs
    exponent = np.log(costs[-1] / costs[-2]) / np.log(sizes[-1] / sizes[-2])
    return float(fixed), float(rate), float(off.max()), float(exponent)


def summary(name: str, rows: list[dict]) -> dict:
    """Cells of the lines through the rows of a sweep."""
    cells = {}
    for kind, unit in (("ms", "ms"), ("mib", "MiB")):
        fixed, rate, off, exponent = line(
            [row["size"] for row in rows], [row[kind] for row in rows]
        )
        per = 10_000 if name == "pixels" else 1
        amount = f"{per:,} pixels" if name == "pixels" else "each"
        cells[unit] = f"{fixed:.3g} + {per * rate:.3g} for {amount}"
        cells[f"off the line, {unit}"] = f"{off:.0%}"
        cells[f"exponent of the last doubling, {unit}"] = f"{exponent:.2f}"
    return cells


def speed_of_processes(rows: list[dict], cores: int) -> None:
    """Add images per second to the rows of the processes, and their share of the ideal.

    Ideally `cores` processes, or all if they are fewer, are each as fast as one alone.
    """
    alone = rows[0]["size"] / rows[0]["ms"]
    for row in rows:
        rate = row["size"] / row["ms"]
        row["cells"] |= {
            "images/s": digits(1e3 * Step().batch * rate),
            "share of the ideal": f"{rate / alone / min(row['size'], cores):.0%}",
            "ms, exchange of gradients alone": row["all_reduce_ms"],
        }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=4, help="of timed steps per row (4)")
    parser.add_argument("--only", default="", help="sweeps whose name contains this")
    parser.add_argument("--json", type=Path, help="save rows here; rows of the file are continued")
    parser.add_argument("--plot", type=Path, help="draw the rows to this picture")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        results = Results(args.json, settings(parser.prog, argv))
    except ValueError as error:
        parser.error(str(error))
    cores, chosen = len(os.sched_getaffinity(0)), [name for name in SWEEPS if args.only in name]
    for name in chosen:
        sweep, rows = SWEEPS[name], []
        clock = "perf_counter" if name == "processes" else "process_time"
        for value, step in zip(sweep.values, sweep.steps(), strict=True):
            label = f"{value} x {value}" if name == "pixels" else str(value)
            key = (f"{name}: {label}", "step", "")
            if results.row(key) is None:
                row = {"sweep": name, "size": sweep.size(value)}
                row |= in_fresh_process(measure, asdict(step), args.seconds, clock)
                row["cells"] = {"ms": row["ms"], "MiB": row["mib"]}
                results.put(key, row)
            rows.append(results.row(key))
        if name == "processes":
            speed_of_processes(rows, cores)
        else:
            results.put((name, "line", ""), {"cells": summary(name, rows)})
    results.write()
    print(terminal(results.data))
    if args.plot:
        draw(results.data).savefig(args.plot)


if __name__ == "__main__":
    main()
