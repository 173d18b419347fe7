"""Activation checkpointing: a stage keeps only the inputs of its blocks, and recomputes the rest in
the backward pass."""

import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class CheckpointedStage(nn.Sequential):
    """A sequence of blocks that are computed twice in training to save memory.

    Outputs, gradients and running statistics of batch normalisation are those of
    `torch.nn.Sequential`: the statistics are updated once. Blocks must not draw random numbers.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        for block in self:
            x = checkpoint(
                block, x, use_reentrant=False, preserve_rng_state=False, **_contexts(block)
            )
        return x


def _contexts(block: nn.Module) -> dict:
    norms = [m for m in block.modules() if isinstance(m, BATCH_NORMS) and m.training]
    # A compiled graph updates statistics only once anyway, and does not support these contexts.
    if not norms or torch.compiler.is_compiling():
        return {}
    return {"context_fn": lambda: (contextlib.nullcontext(), _WithoutStatistics(norms))}


class _WithoutStatistics:
    """A context in which batch normalisation does not update its running statistics.

    It is entered each time the block is recomputed: more than once with retain_graph or
    create_graph, which is why it is not a generator-based context manager.
    """

    def __init__(self, norms):
        self.norms = norms

    def __enter__(self):
        self.settings = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()

    def __exit__(self, *error):
        for norm, (momentum, batches) in zip(self.norms, self.settings, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
