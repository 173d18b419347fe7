"""Which convolutions of a network stand on which: the order of their forward pass does not tell."""

import torch
from torch import nn

CORNER = 64  # pixels of the input that are enough to see every layer run


def layers_below(root: nn.Module, layers: dict[str, nn.Module], x: torch.Tensor):
    """Of each layer, the names of those whose output its input is computed from.

    Branches that run side by side, as in an Inception block, do not stand on one another. Found by
    following the autograd graph of one forward pass of a corner of `x`.

    Args:
        root: a network of one input and any output, in evaluation mode.
        layers: some of its modules by name.
        x: (1, C, H, W), an input of it.

    Returns:
        {name: set of names}
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
    """All nodes of the autograd graph that `x` comes from."""
    seen, waiting = set(), [x.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return seen
