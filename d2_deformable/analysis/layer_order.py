"""Find which layers of a network feed which; the order of the forward pass does not show it."""

import torch
from torch import nn

CORNER = 64  # pixels per side of the input; enough for every layer to run


def layers_below(root: nn.Module, layers: dict[str, nn.Module], x: torch.Tensor):
    """For each layer, find the layers that its input is computed from.

    Parallel branches, as in an Inception block, do not depend on each other. The dependencies are
    found in the autograd graph of one forward pass on a corner of `x`.

    Args:
        root: a network with one input and any output, in evaluation mode.
        layers: some of its modules by name.
        x: (1, C, H, W), an input of the network.

    Returns:
        {name of a layer: names of the layers below it}
    """
    below, outputs = {}, {}
    handles = []

    def watch(name, layer):
        def on_forward(_, args, output):
            below[name] = {outputs[node] for node in _ancestors(args[0]) if node in outputs}
            outputs[output.grad_fn] = name

        handles.append(layer.register_forward_hook(on_forward))

    for name, layer in layers.items():
        watch(name, layer)
    try:
        with torch.enable_grad():
            root(x[..., :CORNER, :CORNER].detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return below


def _ancestors(x):
    """Collect all nodes of the autograd graph that `x` is computed from."""
    seen, waiting = set(), [x.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return seen
