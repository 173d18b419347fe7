"""Layers that start at zero."""

import pytest
import torch

from d2_deformable.layers.zero import ZeroConv2d, ZeroLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "make", [lambda **kw: ZeroConv2d(4, 2, 1, **kw), lambda **kw: ZeroLinear(4, 2, **kw)]
)
def test_they_start_at_zero_and_leave_the_random_state(make, bias):
    before = torch.get_rng_state()
    layer = make(bias=bias)
    assert torch.equal(torch.get_rng_state(), before)
    assert (layer.bias is not None) == bias
    assert not any(parameter.any() for parameter in layer.parameters())
