"""Derivatives of the operators, for torch.autograd and torch.func alike.

`torch.library.register_autograd` serves torch.autograd only: torch.func refuses what it registers,
and forward mode treats the operator as a constant. Serving all three needs the private names of
torch below. An operator can have only one autograd kernel, so a check at import decides which of
the two is registered. Where a name is missing, gradients work as usual; forward mode and torch.func
(except vmap) raise an error.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Versions of torch on which the private names were tested: those of docs/versions.md.
TESTED = "2.11, 2.12, 2.13 and 2.14"
# Part of the error of torch.func for what `torch.library.register_autograd` registers.
TORCH_FUNC_REFUSAL = "functorch transforms"
try:
    from torch._C import _after_autograd_keyset, _AutoDispatchBelowAutograd
    from torch._functorch.utils import enable_single_level_autograd_function
    from torch.autograd.forward_ad import _set_fwd_grad_enabled
    from torch.autograd.function import _SingleLevelFunction
except ImportError as error:
    MISSING = str(error).partition(" (")[0]  # without the path of the file
else:
    MISSING = ""


def register_autograd(op: str, *, setup_context, backward, composite) -> None:
    """Register the derivatives of the operator.

    ``setup_context(ctx, *arguments)`` saves what ``backward(ctx, *grad_outputs)`` needs. The latter
    returns one gradient per positional argument. Where a tensor has a forward-mode tangent,
    ``composite(*arguments)`` is computed instead of the operator.
    """
    if MISSING:
        _register_gradients(op, setup_context, backward)
    else:
        _register_all_derivatives(op, setup_context, backward, composite)


def _register_all_derivatives(op, setup_context, backward, composite) -> None:
    """Register gradients, forward-mode derivatives and the transforms of torch.func.

    One call handles one level of torch.func's nested transforms, as in PyTorch's own operators.
    The call that it makes below autograd handles the next level.
    """
    overload = getattr(torch.ops.d2_deformable, op).default

    def run(keys, args, keywords):
        with _AutoDispatchBelowAutograd():
            return overload.redispatch(keys & _after_autograd_keyset, *args, **keywords)

    class Derivatives(_SingleLevelFunction):
        @staticmethod
        def forward(ctx, keys, keywords, *args):
            # Autograd has switched off both modes, which the next levels need.
            with torch.enable_grad(), _set_fwd_grad_enabled(True):
                output = run(keys, args, keywords)
            setup_context(ctx, *args, **keywords)
            return output

        @staticmethod
        def backward(ctx, *grad_outputs):
            return None, None, *backward(ctx, *grad_outputs)

    # Created under this name, because a grad_fn keeps the name that its class was created with.
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


def _register_gradients(op, setup_context, backward) -> None:
    def setup(ctx, inputs, output, keyword_only_inputs={}):  # noqa: B006  (is only read)
        setup_context(ctx, *inputs, **keyword_only_inputs)

    name = f"d2_deformable::{op}"
    torch.library.register_autograd(name, backward, setup_context=setup, lib=_library)


class _RefusingLibrary(torch.library.Library):
    """A library whose autograd kernels refuse forward mode and torch.func.

    Forward mode would treat the operator as a constant, and torch.func asks for methods that only
    the author of an autograd Function can add.
    """

    def impl(self, op_name, kernel, *args, **keywords):
        def call(*arguments, **keywords_of_call):  # where the keyset stands makes no difference
            refusal = NotImplementedError(
                f"{op_name}: forward mode and torch.func's transforms other than vmap need private "
                f"names of torch that {torch.__version__} does not have ({MISSING}); use "
                f"torch.autograd, or torch {TESTED}, on which they were tested"
            )
            if any(isinstance(a, Tensor) and _has_tangent(a) for a in arguments):
                raise refusal
            try:
                return kernel(*arguments, **keywords_of_call)
            except RuntimeError as error:
                if TORCH_FUNC_REFUSAL in str(error):
                    raise refusal from error
                raise

        super().impl(op_name, call, *args, **keywords)


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None


# Registrations live as long as this object.
_library = (_RefusingLibrary if MISSING else torch.library.Library)("d2_deformable", "FRAGMENT")
