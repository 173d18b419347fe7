"""A model, not a measurement: the exchange of gradients of many GPUs, from the size of the network.

    python -m benchmarks.network_model docs/speed.md    # rewrites the table of the page

A ring all-reduce of B bytes over N processes sends and receives 2 (N - 1) / N * B bytes in each of
them (Patarasuk and Yuan 2009). It takes that many bytes over the bandwidth of the slowest link: the
one between two machines, or NVLink if all GPUs are in one. Latencies and other traffic are left
out. DistributedDataParallel exchanges gradients during the backward pass, so the step takes between
the longer of both times and their sum.
"""

import re
import sys
from pathlib import Path

import torch

from d2_deformable.config import read_config
from d2_deformable.modeling import build_model

CONFIG = Path(__file__).parents[1] / "configs/COCO-Detection/rfcn_R_101_dconv3_dpool.yaml"
BLOCK = re.compile(r"(<!-- network model -->\n).*?(<!-- end -->)", flags=re.S)
GPUS = (8, 16, 32, 64)
IN_A_MACHINE = 8
NVLINK = 450e9  # bytes/s in each direction, as of an H100
NETWORKS = {"25 Gbit/s": 25e9 / 8, "100 Gbit/s": 100e9 / 8, "400 Gbit/s": 400e9 / 8}
STEPS = (0.1, 0.4)  # seconds of computation, assumed


def gradient_bytes(config=CONFIG) -> int:
    """Bytes of the float32 gradients of a network's trained parameters."""
    cfg = read_config(config, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    return 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def all_reduce_seconds(size: int, processes: int, bandwidth: float) -> float:
    """Seconds of a ring all-reduce of `size` bytes over links of `bandwidth` bytes/s."""
    return 2 * (processes - 1) / processes * size / bandwidth


def efficiency(seconds: float, exchange: float) -> tuple[float, float]:
    """Share of the ideal speed: without any overlap of computation and exchange, and with all."""
    return seconds / (seconds + exchange), seconds / max(seconds, exchange)


def markdown() -> str:
    size = gradient_bytes()
    head = ["GPUs", "link", "exchange", *(f"speed, steps of {1e3 * s:.0f} ms" for s in STEPS)]
    rows = [head, ["---"] * len(head)]
    for processes in GPUS:
        links = {"NVLink": NVLINK} if processes <= IN_A_MACHINE else NETWORKS
        for name, bandwidth in links.items():
            exchange = all_reduce_seconds(size, processes, bandwidth)
            shares = [efficiency(seconds, exchange) for seconds in STEPS]
            rows.append(
                [str(processes), name, f"{1e3 * exchange:.3g} ms"]
                + [f"{low:.0%} to {high:.0%}" for low, high in shares]
            )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n{CONFIG.stem} of COCO: {size / 1e6:.0f} MB of gradients.\n"


def filled(page: Path) -> str:
    """Return the text of a page with its table updated."""
    return BLOCK.sub(lambda match: match[1] + markdown() + match[2], page.read_text())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(filled(Path(name)))
