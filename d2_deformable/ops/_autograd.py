"""Derivatives of the operators, for torch.autograd and torch.func alike.

torch.library.register_autograd serves torch.autograd alone: torch.func refuses what it registers,
and forward mode takes the operator for a constant.
"""

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

_library = torch.library.Library("d2_deformable", "FRAGMENT")


def register_autograd(op: str, *, setup_context, backward, composite) -> None:
    """Gives the operator its derivatives.

    ``setup_context(ctx, *arguments)`` keeps what ``backward(ctx, *grad_outputs)`` needs, which
    returns a gradient per positional argument. Where a tensor has a forward-mode tangent,
    ``composite(*arguments)`` is computed in the operator's place.

    The operator runs at one level of torch.func's transforms at a time, as PyTorch's own do: what
    it calls, below autograd, goes on to the next level.
    """
    overload = getattr(torch.ops.d2_deformable, op).default

    def run(keys, args, keywords):
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keys & torch._C._after_autograd_keyset, *args, **keywords)

    class Derivatives(_SingleLevelFunction):
        @staticmethod
        def forward(ctx, keys, keywords, *args):
            # Autograd has switched both off for this level, not for those below.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                output = run(keys, args, keywords)
            setup_context(ctx, *args, **keywords)
            ctx.given = len(args)
            return output

        @staticmethod
        def backward(ctx, *grad_outputs):
            return None, None, *backward(ctx, *grad_outputs)[: ctx.given]

    # A class made with that name: a grad_fn has the name that its class is born with.
    Function = type(f"d2_deformable_{op}", (Derivatives,), {})

    def call(keys, *args, **keywords):
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if any(map(_has_tangent, tensors)):
            return composite(*args, **keywords)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            with enable_single_level_autograd_function():
                return Function.apply(keys, keywords, *args)
        return run(keys, args, keywords)

    _library.impl(op, call, "Autograd", with_keyset=True)


def _has_tangent(tensor: Tensor) -> bool:
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(tensor, level=forward_ad._current_level).tangent is not None
