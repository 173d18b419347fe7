"""With a torch that lacks a private name which torch.func needs, gradients still work, and the rest
is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2_deformable.ops._autograd import TORCH_FUNC_REFUSAL

TESTS = Path(__file__).resolve().parents[1]
HIDE = """
import torch._functorch.utils
del torch._functorch.utils.enable_single_level_autograd_function
"""
GRADIENTS = """
import pytest
names = ("deform_conv2d", "deform_roi_align", "deform_roi_pool", "ps_roi_pool")
files = [f"ops/test_{name}.py" for name in names]
tests = "equals_reference or gradcheck or opcheck or dynamic"
raise SystemExit(pytest.main([*files, "ops/test_second_order.py", "-x", "-k", tests]))
"""
REFUSED = """
import pytest
import torch
from torch import func
from torch.autograd import forward_ad

from d2_deformable import ops

image = torch.randn(1, 4, 5, 5)
rois = torch.tensor([[0.0, 0, 0, 9, 9]])
offset, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 4, 1, 1)
pool = {"output_size": 2, "spatial_scale": 0.5}

def forward_mode(function):
    with forward_ad.dual_level():
        function(forward_ad.make_dual(image, image))

for operator in (
    lambda image: ops.deform_conv2d(image, offset, weight),
    lambda image: ops.deform_roi_pool(image, rois, **pool),
    lambda image: ops.deform_roi_align(image, rois, **pool),
    lambda image: ops.ps_roi_pool(image, rois, **pool),
):
    loss = lambda image: operator(image).square().sum()
    for derivative in (
        lambda: func.grad(loss)(image),
        lambda: func.vjp(loss, image)[1](torch.tensor(1.0)),
        lambda: func.jvp(loss, (image,), (image,)),
        lambda: func.hessian(loss)(image),
        lambda: func.vmap(func.grad(loss))(image[None]),
        lambda: forward_mode(loss),
    ):
        with pytest.raises(NotImplementedError, match="private names .*cannot import name 'enable"):
            derivative()
    assert func.vmap(loss)(image[None]) == loss(image)
"""


def check(code):
    done = subprocess.run(
        [sys.executable, "-c", HIDE + code], cwd=TESTS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_gradients_stay():
    check(GRADIENTS)


def test_torch_func_and_forward_mode_are_refused():
    check(REFUSED)


def test_the_error_of_torch_func_is_recognised():
    """`register_autograd` of this torch refuses torch.func with the text that we look for."""

    @torch.library.custom_op("d2_deformable_tests::square", mutates_args=())
    def square(x: torch.Tensor) -> torch.Tensor:
        return x * x

    square.register_autograd(lambda ctx, grad: grad)
    with pytest.raises(RuntimeError, match=TORCH_FUNC_REFUSAL):
        torch.func.grad(lambda x: square(x).sum())(torch.ones(2))
