import pytest
import torch
import torch.nn.functional as F

import reference
from d2_deformable import ops
from d2_deformable.layers import (
    DeformRoIAlign,
    DeformRoIPool,
    ModulatedDeformRoIPool,
    PSRoIPredictor,
    RoIAveragePool,
)

ROIS = torch.tensor(
    [[0, 10.0, 20.0, 90.0, 120.0], [1, 0.0, 0.0, 40.0, 30.0], [0, 50.0, 5.0, 140.0, 70.0]]
)


def test_deform_roi_pool_starts_without_shifts():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 9, 10)
    layer = DeformRoIPool(5, 3)
    expected = ops.deform_roi_pool(x, ROIS, output_size=3, spatial_scale=1 / 16)
    torch.testing.assert_close(layer(x, ROIS, 1 / 16), expected)
    with torch.no_grad():
        layer.offset_fc.bias += 1.0
    assert not torch.allclose(layer(x, ROIS, 1 / 16), expected)
    assert torch.equal(RoIAveragePool(3)(x, ROIS, 1 / 16), expected)


@pytest.mark.parametrize("round_rois", [True, False])
def test_average_pool_of_whole_pixels_is_equation_5(round_rois):
    x = torch.randn(2, 20, 9, 10, dtype=torch.float64, requires_grad=True)
    rois = torch.cat([ROIS.double(), torch.tensor([[1, -30.0, 100.4, 50.6, 190.0]]).double()])
    arguments = {"output_size": 3, "spatial_scale": 1 / 16, "round_rois": round_rois}
    layer = RoIAveragePool(3, samples_per_part=0, round_rois=round_rois)
    pooled, expected = layer(x, rois, 1 / 16), reference.roi_average_pool(x, rois, **arguments)
    torch.testing.assert_close(pooled, expected)
    grad = torch.randn_like(pooled)
    gradients = [torch.autograd.grad(output, x, grad)[0] for output in (pooled, expected)]
    torch.testing.assert_close(*gradients)


def test_average_pool_of_whole_pixels_is_adaptive_pooling_of_a_crop():
    """torch's adaptive pooling has the bins of equation 5 as well."""
    x = torch.randn(1, 3, 20, 20)
    pooled = RoIAveragePool(3, samples_per_part=0)(
        x, torch.tensor([[0, 32.0, 16, 160, 240]]), 1 / 16
    )
    torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(x[..., 1:15, 2:10], 3))


def test_samples_are_needed_for_shifts():
    message = "samples_per_part is 0; expected at least 1 .*DEFORM_SAMPLES_PER_PART"
    for build in (
        lambda **samples: DeformRoIPool(4, 3, **samples),
        lambda **samples: PSRoIPredictor(4, 3, 3, spatial_scale=1.0, interpolate=True, **samples),
    ):
        with pytest.raises(ValueError, match=message):
            build(samples_per_part=0)


def test_average_pools_are_deformable_pools_with_offsets_of_zero():
    x = torch.randn(2, 9, 9, 10)
    zero = torch.zeros(3, 2, 3, 3)
    pool = {"output_size": 3, "spatial_scale": 1 / 16, "gamma": 0.1}
    average = RoIAveragePool(3)(x, ROIS, 1 / 16)
    assert torch.equal(average, ops.deform_roi_pool(x, ROIS, zero, **pool))
    predictor = PSRoIPredictor(9, 4, 3, spatial_scale=1 / 16, interpolate=True)
    maps = predictor.score_maps(x)
    pooled = ops.deform_roi_pool(maps, ROIS, zero, group_size=3, **pool)
    assert torch.equal(predictor(x, ROIS), pooled.mean((2, 3)))


def test_deform_roi_pool_offsets_are_dy_then_dx():
    x = torch.arange(20.0).expand(1, 1, 20, 20)  # grows to the right, constant downwards
    rois = torch.tensor([[0, 80.0, 80.0, 160.0, 160.0]])
    layer = DeformRoIPool(1, 2)
    plain = layer(x, rois, 1 / 16)
    with torch.no_grad():
        layer.offset_fc.bias[:4] = 1.0  # dy of the 2 x 2 bins
    torch.testing.assert_close(layer(x, rois, 1 / 16), plain)
    with torch.no_grad():
        layer.offset_fc.bias[4:] = 1.0  # dx = gamma * width = 0.1 * 5 cells
    torch.testing.assert_close(layer(x, rois, 1 / 16), plain + 0.5)


def test_modulated_deform_roi_pool_is_the_plain_one_times_factors():
    """As in Zhu et al. 2019: three layers, the last of which starts at zero."""
    x = torch.randn(2, 5, 9, 10)
    state = torch.get_rng_state()
    layer = ModulatedDeformRoIPool(5, 3, hidden_channels=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.out_features for m in layer.offset_fc[::2]] == [8, 8, 3 * 9]
    expected = ops.deform_roi_pool(x, ROIS, output_size=3, spatial_scale=1 / 16)
    torch.testing.assert_close(layer(x, ROIS, 1 / 16), 0.5 * expected)

    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prediction = layer.offset_fc(expected.flatten(1)).view(3, 3, 3, 3)  # dy, dx, factor
    expected = ops.deform_roi_pool(
        x, ROIS, prediction[:, :2], output_size=3, spatial_scale=1 / 16, gamma=0.1
    )
    expected = expected * prediction[:, 2:].sigmoid()
    torch.testing.assert_close(layer(x, ROIS, 1 / 16), expected)
    layer(x, ROIS, 1 / 16).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_modulated_ps_roi_predictor_has_a_factor_per_bin_and_class():
    x = torch.randn(2, 5, 9, 10)
    plain = PSRoIPredictor(5, 4, 3, spatial_scale=1 / 16, interpolate=True)
    layer = PSRoIPredictor(5, 4, 3, spatial_scale=1 / 16, offset_classes=2, modulated=True)
    layer.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(layer(x, ROIS), 0.5 * plain(x, ROIS))

    factors = torch.linspace(0.1, 0.9, 2 * 9).view(2, 9)
    inside = ROIS.clone()  # no bin lies outside the map, where the factors' maps are not read
    inside[:, 1:] = torch.tensor([20.0, 20.0, 120.0, 110.0])
    with torch.no_grad():
        layer.offset_maps.bias[2 * 2 * 9 :] = factors.logit().flatten()
    torch.testing.assert_close(
        layer.predict_offsets(x, inside).mask, factors.view(1, 2, 3, 3).expand(3, -1, -1, -1)
    )
    pooled = ops.deform_roi_pool(
        plain.score_maps(x), inside, output_size=3, spatial_scale=1 / 16, group_size=3
    )
    expected = pooled.view(3, 2, 2, 9) * factors[:, None]  # outputs 0 and 1 are of class 0
    torch.testing.assert_close(layer(x, inside), expected.mean(-1).flatten(1))
    layer(x, ROIS).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_deform_roi_align_starts_without_shifts():
    """The modulated layer starts at half the pooled value, like mmcv's."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 9, 10)
    expected = ops.deform_roi_align(x, ROIS, output_size=3, spatial_scale=1 / 16)
    for modulated, factor in ((False, 1), (True, 0.5)):
        layer = DeformRoIAlign(5, 3, hidden_channels=8, modulated=modulated)
        start = layer(x, ROIS, 1 / 16)
        torch.testing.assert_close(start, factor * expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            layer.offset_fc[-1].bias += 1.0
        assert not torch.allclose(layer(x, ROIS, 1 / 16), start)


def test_deform_roi_align_factors_are_those_of_bins():
    x = torch.ones(1, 2, 20, 20)
    layer = DeformRoIAlign(2, 2, hidden_channels=4, modulated=True)
    with torch.no_grad():
        layer.mask_fc[-1].bias.copy_(torch.tensor([0.0, 100.0, -100.0, 0.0]))
    rois = torch.tensor([[0, 80.0, 80.0, 160.0, 160.0]])
    expected = torch.tensor([[0.5, 1.0], [0.0, 0.5]]).expand(1, 2, 2, 2)
    torch.testing.assert_close(layer(x, rois, 1 / 16), expected)


@pytest.mark.parametrize("modulated", [False, True])
def test_deform_roi_align_learns(modulated):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 9, 10, requires_grad=True)
    layer = DeformRoIAlign(5, 3, hidden_channels=8, modulated=modulated)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer(x, ROIS, 1 / 16).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in [x, *layer.parameters()])


def test_ps_roi_predictor_averages_position_sensitive_pooling():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 9, 10)
    with pytest.raises(ValueError, match="PSRoIPredictor: spatial_scale is 0; expected map pix"):
        PSRoIPredictor(5, 4, 3, spatial_scale=0)
    plain = PSRoIPredictor(5, 4, 3, spatial_scale=1 / 16)
    maps = plain.score_maps(x)
    expected = ops.ps_roi_pool(maps, ROIS, output_size=3, spatial_scale=1 / 16).mean((2, 3))
    torch.testing.assert_close(plain(x, ROIS), expected)
    assert plain(x, ROIS).shape == (3, 4)

    deform = PSRoIPredictor(5, 4, 3, spatial_scale=1 / 16, offset_classes=2)
    deform.load_state_dict(plain.state_dict(), strict=False)
    expected = ops.deform_roi_pool(
        maps, ROIS, output_size=3, spatial_scale=1 / 16, group_size=3
    ).mean((2, 3))
    torch.testing.assert_close(deform(x, ROIS), expected)
    average = PSRoIPredictor(5, 4, 3, spatial_scale=1 / 16, interpolate=True)
    average.load_state_dict(plain.state_dict())
    torch.testing.assert_close(average(x, ROIS), expected)
    assert not torch.allclose(expected, plain(x, ROIS))
    assert deform.predict_offsets(x, ROIS).offset.shape == (3, 4, 3, 3)


def test_ps_roi_predictor_moves_only_the_outputs_of_a_class():
    torch.manual_seed(0)
    x = torch.randn(1, 5, 9, 10)
    layer = PSRoIPredictor(5, 4, 3, spatial_scale=1 / 16, offset_classes=2)
    rois = ROIS[ROIS[:, 0] == 0]
    before = layer(x, rois)
    with torch.no_grad():
        layer.offset_maps.bias[2 * 9 :] += 1.0  # (dy, dx) of the second class
    after = layer(x, rois)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert (after[:, 2:] != before[:, 2:]).all()


def test_no_rois():
    x = torch.randn(1, 5, 9, 10)
    none = torch.zeros(0, 5)
    assert DeformRoIPool(5, 3)(x, none, 1 / 16).shape == (0, 5, 3, 3)
    assert ModulatedDeformRoIPool(5, 3)(x, none, 1 / 16).shape == (0, 5, 3, 3)
    assert DeformRoIAlign(5, 3, modulated=True)(x, none, 1 / 16).shape == (0, 5, 3, 3)
    layer = PSRoIPredictor(5, 4, 3, spatial_scale=1 / 16, offset_classes=4)
    assert layer(x, none).shape == (0, 4)
    layer(x, none).sum().backward()
