"""Time whole networks against their plain twins, and with torchvision's operator in them.

python -m benchmarks.models --threads 1 --only "3 deformable layers, G=4, forward"
python -m benchmarks.models --json benchmarks/results/models.json --seconds 60
"""

import gc
import sys
from functools import partial

import torch

from d2_deformable.analysis.complexity import Stopwatch

from . import command
from .command import Bench, Row
from .implementations import OURS, PLAIN, TORCHVISION
from .networks import NETWORKS, REDUCED, Network, torchvision_inside

TOLERANCE = 1e-3  # of features, relative to the largest


def forward(model, inputs) -> dict:
    with torch.no_grad():
        return model(inputs)


def forward_backward(model, inputs) -> dict:
    """Compute features and the gradients of all parameters that are not frozen."""
    features = model(inputs)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = sum(feature.float().square().mean() for feature in features.values())
    gradients = torch.autograd.grad(total, list(parameters.values()))
    named = dict(zip(parameters, gradients, strict=True))
    return {name: tensor.detach() for name, tensor in (features | named).items()}


def inference(model, inputs) -> dict:
    forward(model, inputs)
    return {}  # no large results


BACKBONE_PASSES = {"forward": forward, "forward + backward": forward_backward}
# Indices into the result of Stopwatch: time up to the last module, and with post-processing.
NETWORK_PASSES = {"forward": 0, "whole inference": 1}


def rows(args):
    for network in REDUCED if args.smoke else NETWORKS:
        passes = BACKBONE_PASSES if network.backbone_only else NETWORK_PASSES
        for pass_name, what in passes.items():
            measure = measure_backbone if network.backbone_only else measure_network
            yield Row(network.name, pass_name, "", partial(measure, network, what))


def measure_backbone(network: Network, run, bench: Bench) -> dict:
    """Measure a plain backbone, ours, and ours with torchvision's operator.

    Raises:
        ArithmeticError: our features differ from those computed with torchvision's operator.
    """
    device = bench.clock.device
    plain, deformable = network.models(device)
    inputs = network.draw(device, shrink=4)
    with torchvision_inside():
        expected = forward(deformable, inputs)
    error = max(
        ((feature - expected[name]).abs().max() / expected[name].abs().max()).item()
        for name, feature in forward(deformable, inputs).items()
    )
    if not error <= TOLERANCE:
        raise ArithmeticError(f"{network.name}: features differ by {error} from torchvision's")
    calls = {
        PLAIN: partial(run, plain),
        OURS: partial(run, deformable),
        TORCHVISION: torchvision_inside()(partial(run, deformable)),
    }

    def timer(call):
        return lambda inputs: bench.clock.seconds(partial(call, inputs), "hot")

    timers = {name: timer(call) for name, call in calls.items()}
    return compare(calls, timers, network, bench) | {"error": {OURS: float(f"{error:.3g}")}}


def measure_network(network: Network, index: int, bench: Bench) -> dict:
    """Measure the plain and the deformable network, from image to detections or labels."""
    models = dict(zip((PLAIN, OURS), network.models(bench.clock.device), strict=True))

    def timer(model):
        return lambda inputs: Stopwatch(model)(inputs)[index]

    timers = {name: timer(model) for name, model in models.items()}
    calls = {name: partial(inference, model) for name, model in models.items()}
    result = compare(calls, timers, network, bench)
    return result | ({"paper": network.paper} if index == 0 and network.paper else {})


def compare(calls: dict, timers: dict, network: Network, bench: Bench) -> dict:
    """Measure the peak memory of `calls` and rounds of `timers`; all are functions of inputs."""
    device = bench.clock.device
    half = bench.dtype != torch.float32

    def run(function, inputs):
        gc.collect()
        with torch.autocast(device.type, bench.dtype, enabled=half):
            return function(inputs)

    inputs = network.draw(device)
    memory = {
        name: bench.clock.peak_memory(partial(run, call, inputs)) for name, call in calls.items()
    }
    runs = {name: partial(run, timer) for name, timer in timers.items()}
    rounds = bench.interleave(runs, lambda: network.draw(device))
    return rounds.summary(PLAIN) | {"memory_mib": memory, "missing": {}}


if __name__ == "__main__":
    sys.exit(command.run(command.parser("models", __doc__.splitlines()[0], rounds=5), rows))
