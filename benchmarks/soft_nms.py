"""Milliseconds of soft-NMS beside ordinary NMS, in one run.

    python -m benchmarks.soft_nms

Each call takes R overlapping boxes of 80 classes with random scores and returns the 100 best
detections. The variants take turns, so that other load of the machine affects them alike.
"""

import argparse
import statistics

import torch
from detectron2.layers import batched_nms

from d2_deformable.modeling import SoftNMS
from d2_deformable.utils.provenance import commit, machine, versions

from .clock import clock_of

IOU, MOST, CLASSES = 0.3, 100, 80


def variants(boxes, scores, classes) -> dict:
    def hard():
        return batched_nms(boxes, scores, classes, IOU)[:MOST]

    def soft(nms):
        return lambda: nms(boxes, scores, classes, IOU, MOST)

    return {"NMS": hard, "linear": soft(SoftNMS("linear")), "gaussian": soft(SoftNMS("gaussian"))}


def milliseconds(count: int, clock, rounds: int) -> dict[str, float]:
    """Median of each variant on `count` boxes, after one call that does not count."""
    torch.manual_seed(0)
    corners = torch.rand(count, 2, device=clock.device) * 600
    sides = 20 + torch.rand(count, 2, device=clock.device) * 200
    classes = torch.randint(CLASSES, (count,), device=clock.device)
    scores = torch.rand(count, device=clock.device)
    calls = variants(torch.cat([corners, corners + sides], dim=1), scores, classes)
    times = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            times[name].append(1e3 * clock.seconds(call))
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, nargs="+", default=[300, 3000, 30000])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", type=torch.device, default="cpu")
    args = parser.parse_args(argv)
    print(f"{machine()}; {versions()}; commit {commit()}; {torch.get_num_threads()} threads; ms")
    for count in args.boxes:
        row = milliseconds(count, clock_of(args.device), args.rounds)
        print(f"{count:6} boxes", *(f"{name} {ms:.1f}" for name, ms in row.items()), sep="  ")


if __name__ == "__main__":
    main()
