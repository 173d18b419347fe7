"""Expected cost of a training, measured in a few real steps: time, memory, learning-rate schedule.

Nothing is written to OUTPUT_DIR.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from ..engine import Trainer, learning_rate
from ..engine.console import peak_memory
from ..utils.pixels import read_image
from ..utils.text import count
from . import complexity
from .flops import count_macs

STEPS = 5  # of which the first, with its allocations, is not timed
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """The cost of a training.

    Args:
        batch: images of one step, in this process.
        seconds: of a step, the median.
        data_seconds: of it, the wait for images, the median.
        memory: bytes at the peak, of the GPU or else of this process.
        device: whose memory it is, "GPU" or "process".
        model: the network, after the steps.
    """

    batch: int
    seconds: float
    data_seconds: float
    memory: int
    device: str
    model: nn.Module


def of_one_process(cfg: CfgNode, world_size: int) -> CfgNode:
    """The config of a training with the batch that each of its processes takes.

    Detectron2 rescales it first, see SOLVER.REFERENCE_WORLD_SIZE.
    """
    cfg = Trainer.auto_scale_workers(cfg, world_size).clone()
    cfg.defrost()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    cfg.SOLVER.IMS_PER_BATCH //= world_size
    cfg.freeze()
    return cfg


def measure_steps(cfg: CfgNode) -> Cost:
    """Run the first steps of a training.

    Args:
        cfg: has passed `preflight`.

    Raises:
        ValueError: a step needs more memory than the GPU has.
        FloatingPointError: a loss is not finite.
    """
    cuda = cfg.MODEL.DEVICE.startswith("cuda")
    with tempfile.TemporaryDirectory() as folder:
        run = cfg.clone()
        run.defrost()
        run.OUTPUT_DIR = folder
        run.freeze()
        try:
            trainer = Trainer(run, checked=True)
            trainer.resume_or_load(resume=False)
            trainer.model.train()
            seconds = []
            with EventStorage() as trainer.storage:
                for trainer.iter in range(STEPS):
                    start = time.perf_counter()
                    trainer.run_step()
                    if cuda:
                        torch.cuda.synchronize()
                    seconds.append(time.perf_counter() - start)
                    trainer.storage.step()
                waits = [value for value, _ in trainer.storage.history("data_time").values()]
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, and a step needs more memory "
                "than the GPU has. Lower it together with SOLVER.BASE_LR, make images smaller "
                "(INPUT), or set MODEL.BACKBONE.ACTIVATION_CHECKPOINT True"
            ) from error
    return Cost(
        cfg.SOLVER.IMS_PER_BATCH,
        statistics.median(seconds[1:]),
        statistics.median(waits[1:]),
        peak_memory(cfg.MODEL.DEVICE),
        "GPU" if cuda else "process",
        trainer.model,
    )


def describe_network(cfg: CfgNode, model: nn.Module, image_file: str) -> str:
    """Count the parameters, and the multiply-adds of one image as in testing."""
    image = read_image(image_file, cfg.INPUT.FORMAT)
    inputs = complexity.image_as_tested(cfg, image)
    parameters = complexity.parameters_by_part(model)
    model.eval()
    macs = count_macs(model, [inputs])["total"]
    height, width = inputs["image"].shape[-2:]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return "\n".join(
        [
            "network",
            f"  {parameters['total'] / 1e6:.2f} million parameters, {trained / 1e6:.2f} million of "
            f"them trained, {parameters['offsets'] / 1e6:.3f} million predict offsets",
            f"  {macs / 1e9:.2f} billion multiply-adds for one image of {width} x {height} pixels",
        ]
    )


def describe_schedule(cfg: CfgNode, images: int, world_size: int = 1) -> str:
    """List the learning rate where it changes; iterations count from 0, as in the log.

    Args:
        cfg: see `of_one_process`.
        images: of the training set.
    """
    solver = cfg.SOLVER
    visits = solver.MAX_ITER * solver.IMS_PER_BATCH * world_size
    points = {0: "start"}
    if 0 < solver.WARMUP_ITERS < solver.MAX_ITER:
        points[solver.WARMUP_ITERS] = "end of the warm-up"
    if "Step" in solver.LR_SCHEDULER_NAME:
        points |= {step: "step" for step in solver.STEPS if step < solver.MAX_ITER}
    points[solver.MAX_ITER - 1] = "last iteration"
    rows = [
        f"  {iteration:9,d}  {learning_rate(solver, iteration):13.3g}  {meaning}"
        for iteration, meaning in sorted(points.items())
    ]
    return "\n".join(
        [
            f"schedule ({solver.LR_SCHEDULER_NAME})",
            f"  {count(solver.MAX_ITER, 'iteration')} of "
            f"{count(solver.IMS_PER_BATCH * world_size, 'image')}: "
            f"each of the {images:,d} training images is seen {visits / images:.1f} times",
            f"  {'iteration':>9}  {'learning rate':>13}",
            *rows,
        ]
    )


def describe_steps(cost: Cost, iterations: int, world_size: int = 1) -> str:
    """Describe the time and memory of a training with this many iterations."""
    where = f"in each of {world_size} processes" if world_size > 1 else "in this process"
    kind = "GPU memory" if cost.device == "GPU" else "memory"
    lines = [
        f"steps ({count(cost.batch, 'image')} {where})",
        f"  {cost.seconds:.3g} s for a step, of which {cost.data_seconds:.2g} s wait for images; "
        f"{cost.batch * world_size / cost.seconds:.3g} images per second",
        f"  about {duration(cost.seconds * iterations)} for {iterations:,d} iterations, without "
        "evaluations and checkpoints",
        f"  {cost.memory / GIB:.2f} GiB of {kind} at the peak",
    ]
    if world_size > 1:
        lines.append("  measured in one process: the exchange of gradients comes on top")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Format a duration by its two largest units.

    >>> duration(70), duration(200000)
    ('1 min 10 s', '2 days 7 h')
    """
    units = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))
    left, parts = round(seconds), []
    for size, name in units:
        whole, left = divmod(left, size)
        if whole or parts:
            parts.append(f"{whole} {'day' if (whole, name) == (1, 'days') else name}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part[:2] != "0 ") or f"{seconds:.2g} s"
