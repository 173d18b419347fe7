#!/usr/bin/env python
"""Time the operators beside torchvision's, on the CPU or a GPU.

python benchmarks/ops.py --device cuda --dtype float16 --json ops.json
OMP_NUM_THREADS=1 python benchmarks/ops.py

Every round draws fresh inputs and runs both sides in alternating order; what is reported is the
median over rounds of the seconds and of the ratio within a round: other work on the machine slows
both sides of a round alike. deform_conv2d is compared with torchvision's, which computes the same;
deform_roi_pool and ps_roi_pool with ps_roi_align, torchvision's nearest relative.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torchvision
from torchvision.ops import ps_roi_align

from d2_deformable import ops
from d2_deformable.analysis.origin import commit, machine, versions

# Layers of the paper's networks on an image of 600 x 1000 pixels.
CONVOLUTIONS = {
    "res5 512ch 38x63": {"channels": 512, "size": (38, 63), "dilation": 2},
    "res5 512ch 38x63, 4 offset groups": {
        "channels": 512,
        "size": (38, 63),
        "dilation": 2,
        "offset_groups": 4,
    },
    "res4 256ch 38x63": {"channels": 256, "size": (38, 63), "dilation": 1},
    "res3 128ch 75x125": {"channels": 128, "size": (75, 125), "dilation": 1},
}
BINS = 7


def convolution(images, channels, size, dilation, offset_groups=1, **like):
    """(ours, torchvision's, tensors) of one 3x3 layer."""
    tensors = {
        "input": torch.randn(images, channels, *size, **like),
        "offset": 2 * torch.randn(images, 18 * offset_groups, *size, **like),
        "weight": torch.randn(channels, channels, 3, 3, **like) / channels,
    }
    geometry = {"padding": dilation, "dilation": dilation}
    return (
        lambda t: ops.deform_conv2d(**t, **geometry),
        lambda t: torchvision.ops.deform_conv2d(**t, **geometry),
        tensors,
    )


def roi_pooling(images, name, classes=81, num_rois=300, **like):
    """(ours, torchvision's, tensors) of position-sensitive class scores of 300 RoIs."""
    corner = torch.rand(num_rois, 2, device=like["device"]) * torch.tensor(
        [700.0, 400.0], device=like["device"]
    )
    side = 30 + 250 * torch.rand(num_rois, 2, device=like["device"])
    index = torch.arange(num_rois, device=like["device"])[:, None] % images
    rois = torch.cat([index, corner, corner + side], dim=1)
    tensors = {"input": torch.randn(images, classes * BINS * BINS, 38, 63, **like)}
    size = {"output_size": BINS, "spatial_scale": 1 / 16}
    if name == "deform_roi_pool":
        tensors["offset"] = torch.randn(num_rois, 2 * classes, BINS, BINS, **like)

        def ours(t):
            return ops.deform_roi_pool(t["input"], rois, t["offset"], group_size=BINS, **size)
    else:

        def ours(t):
            return ops.ps_roi_pool(t["input"], rois, **size)

    def theirs(t):
        return ps_roi_align(t["input"], rois.to(t["input"].dtype), BINS, 1 / 16, 4)

    return ours, theirs, tensors


def seconds(function, tensors, backward, device) -> float:
    leaves = {n: t.detach().requires_grad_(backward) for n, t in tensors.items()}
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    output = function(leaves)
    if backward:
        output.backward(torch.ones_like(output))
    synchronize()
    return time.perf_counter() - start


def compare(case, backward, device, rounds) -> dict:
    """Medians over rounds of our seconds, theirs, and theirs / ours."""
    mine, other = [], []
    for turn in range(-1, rounds):  # the first one warms up
        *functions, tensors = case()
        order = (0, 1) if turn % 2 else (1, 0)
        times = {side: seconds(functions[side], tensors, backward, device) for side in order}
        if turn >= 0:
            mine.append(times[0])
            other.append(times[1])
    ratios = [b / a for a, b in zip(mine, other, strict=True)]
    return {
        "ms": 1e3 * statistics.median(mine),
        "torchvision_ms": 1e3 * statistics.median(other),
        "times_faster": statistics.median(ratios),
    }


def run(device, dtype, images, rounds) -> list[dict]:
    like = {"device": device, "dtype": dtype}
    cases = {
        f"deform_conv2d {name}": lambda sizes=sizes: convolution(images, **sizes, **like)
        for name, sizes in CONVOLUTIONS.items()
    }
    for name in ("deform_roi_pool", "ps_roi_pool"):
        cases[f"{name} 81 classes, 300 RoIs"] = lambda name=name: roi_pooling(images, name, **like)
    rows = []
    for name, case in cases.items():
        for backward in (False, True):
            row = {"case": name, "pass": "forward + backward" if backward else "forward"}
            row.update(compare(case, backward, device, rounds))
            rows.append(row)
            print(
                f"{name:48} {row['pass']:18} {row['ms']:9.2f} ms, torchvision "
                f"{row['torchvision_ms']:9.2f} ms: {row['times_faster']:.2f} times as fast",
                flush=True,
            )
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16 (float32)")
    parser.add_argument("--images", type=int, default=1, help="images per batch (1)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (7)")
    parser.add_argument(
        "--json", type=Path, help="write the rows, machine and versions to this file"
    )
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    rows = run(device, getattr(torch, args.dtype), args.images, args.rounds)
    if args.json:
        result = {
            "machine": machine(),
            "device": args.device,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "dtype": args.dtype,
            "images": args.images,
            "rounds": args.rounds,
            "rows": rows,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
