"""deform_roi_pool against numbers computed by hand.

On the ramp 10*y + x a bin is 10 * (mean y of its samples) + (mean x).
"""

import pytest
import torch

from d2_deformable.ops import deform_roi_pool


def ramp(height=10, width=10, **like) -> torch.Tensor:
    y, x = torch.arange(height, **like)[:, None], torch.arange(width, **like)
    return (10 * y + x)[None, None]


@pytest.mark.parametrize(
    "roi, arguments, expected",
    [
        # Starts at -0.5, 4 pixels wide. Bin 0 samples -0.5 (clamped to 0), 0, 0.5, 1: mean 0.375;
        # bin 1 samples 1.5, 2, 2.5, 3: mean 2.25.
        ((0, 0, 4, 4), {"output_size": 2}, [[4.125, 6.0], [22.875, 24.75]]),
        # x samples -2.5, -1.5 (both skipped), -0.5 (clamped), 0.5: mean 0.25 of two;
        # y samples -0.5, 0.5, 1.5, 2.5: mean 1.125 of four.
        ((-2, 0, 2, 4), {"output_size": 1}, [[11.5]]),
        # y samples 7.5, 8.5, 9.5 (counted, clamped to 9), 10.5 (skipped): mean 25/3; x as above.
        ((0, 8, 4, 12), {"output_size": 1}, [[250 / 3 + 1.125]]),
        # The only sample of a bin is at its top left corner.
        ((1, 2, 5, 6), {"output_size": 1, "samples_per_part": 1}, [[15.5]]),
        # Halves are rounded away from zero: x0 = 0.5 -> 1, y0 = 2.5 -> 3 (not to even, 0 and 2).
        ((0.5, 2.5, 5, 7), {"output_size": 1, "samples_per_part": 1}, [[25.5]]),
        # So are negative halves: x0 = -0.5 -> -1; the width is 5 - -1 = 6, samples -1.5, 1.5.
        ((-0.5, 1, 5, 2), {"output_size": (1, 2), "samples_per_part": 1}, [[0.0, 6.5]]),
        # x1 = 3.5 -> 4: the second bin starts at -0.5 + 4/2.
        ((0, 1, 3.5, 2), {"output_size": (1, 2), "samples_per_part": 1}, [[5.0, 6.5]]),
        # Without rounding x runs from 0.4 - 0.5 for 3.2 pixels: -0.1 (clamped) and 1.5.
        (
            (0.4, 1, 3.6, 2),
            {"output_size": (1, 2), "samples_per_part": 1, "round_rois": False},
            [[5.0, 6.5]],
        ),
        # An empty RoI covers 0.1 pixels: samples 2.5, 2.525, 2.55, 2.575 on both axes.
        ((3, 3, 3, 3), {"output_size": 1}, [[11 * 2.5375]]),
        # Far outside: nothing to count.
        ((40, 40, 50, 50), {"output_size": 1}, [[0.0]]),
        # Rounding comes before scaling: 6.4 -> 6 -> 3.0 (after scaling it would be 3.2 -> 3).
        (
            (6.4, 5.0, 10, 9),
            {"output_size": 1, "samples_per_part": 1, "spatial_scale": 0.5},
            [[22.5]],
        ),
    ],
)
def test_plain_bins_by_hand(roi, arguments, expected, device, assert_close):
    like = {"dtype": torch.float64, "device": device}
    rois = torch.tensor([[0, *roi]], **like)
    output = deform_roi_pool(ramp(**like), rois, **{"spatial_scale": 1.0, **arguments})
    assert_close(output[0, 0], torch.tensor(expected, **like))


def test_offset_moves_bins_by_fractions_of_the_roi(device, assert_close):
    """RoI 4 high and 8 wide, gamma 0.1: dy = 1 moves by 0.4 pixels, dx = 2 by 1.6 pixels."""
    like = {"dtype": torch.float64, "device": device}
    rois = torch.tensor([[0.0, 0, 1, 8, 5]], **like)
    offset = torch.tensor([1.0, 2.0], **like).view(1, 2, 1, 1).requires_grad_()
    arguments = {"output_size": 1, "spatial_scale": 1.0, "samples_per_part": 1}
    # The corner (y, x) = (0.5, -0.5) moves to (0.9, 1.1).
    output = deform_roi_pool(ramp(**like), rois, offset, **arguments)
    assert_close(output, torch.full_like(output, 10.1))
    output.backward()
    assert_close(offset.grad.flatten(), torch.tensor([10 * 0.1 * 4, 1 * 0.1 * 8], **like))


def test_offset_classes_and_parts_by_hand(device, assert_close):
    """Four channels in two classes, bins 2 x 2, parts 1 x 2: only class 1's right part moves, one
    pixel down (RoI 10 high, gamma 0.1)."""
    like = {"dtype": torch.float64, "device": device}
    image = ramp(20, 20, **like).expand(1, 4, -1, -1)
    rois = torch.tensor([[0.0, 1, 1, 11, 11]], **like)
    offset = torch.zeros(1, 4, 1, 2, **like)
    offset[0, 2, 0, 1] = 1.0
    output = deform_roi_pool(image, rois, offset, output_size=2, spatial_scale=1.0)[0]
    still = deform_roi_pool(image, rois, output_size=2, spatial_scale=1.0)[0]
    moved = torch.zeros(4, 2, 2, **like)
    moved[2:, :, 1] = 10.0
    assert_close(output - still, moved)


def test_position_sensitive_channels(device, assert_close):
    """Input channel (c*g + i)*g + j goes to output channel c, bin (i, j)."""
    image = torch.arange(18.0, device=device).view(1, 18, 1, 1).expand(-1, -1, 6, 6)
    rois = torch.tensor([[0.0, 1, 1, 5, 5]], device=device)
    output = deform_roi_pool(image, rois, output_size=3, spatial_scale=1.0, group_size=3)
    assert_close(output, torch.arange(18.0, device=device).view(1, 2, 3, 3))


def test_position_sensitive_groups_of_bins(device, assert_close):
    """Five bins over two groups per side: bins 0, 1, 2 belong to group 0, bins 3, 4 to group 1."""
    image = torch.arange(4.0, device=device).view(1, 4, 1, 1).expand(-1, -1, 6, 6)
    rois = torch.tensor([[0.0, 1, 1, 5, 5]], device=device)
    output = deform_roi_pool(image, rois, output_size=5, spatial_scale=1.0, group_size=2)
    row = torch.tensor([0, 0, 0, 1, 1], device=device)
    assert_close(output[0, 0], (2 * row[:, None] + row).float())


def test_no_offset_gradient_at_integer_and_clamped_points(device):
    like = {"dtype": torch.float64, "device": device}
    offset = torch.zeros(1, 2, 4, 4, **like, requires_grad=True)
    arguments = {"output_size": 4, "samples_per_part": 1}
    # Scale 1/2 and corner 1 start at 0; bins are at 0, 1, 2, 3.
    rois = torch.tensor([[0.0, 1, 1, 9, 9]], **like)
    deform_roi_pool(ramp(**like), rois, offset, spatial_scale=0.5, **arguments).sum().backward()
    assert not offset.grad.any()
    # Scale 1 and corner 0 start at -0.5, clamped; bins are at -0.5, 0.5, 1.5, 2.5.
    rois = torch.tensor([[0.0, 0, 0, 4, 4]], **like)
    deform_roi_pool(ramp(**like), rois, offset, spatial_scale=1.0, **arguments).sum().backward()
    moves = torch.tensor([0.0, 1, 1, 1], **like) * 0.1 * 4
    assert torch.equal(offset.grad[0, 0], (10 * moves)[:, None].expand(4, 4))
    assert torch.equal(offset.grad[0, 1], moves.expand(4, 4))


def test_input_gradient_by_hand(device, assert_close):
    """One sample is at (1.5, 0.25), one is skipped: count 1, and 4 pixels get all the gradient."""
    like = {"dtype": torch.float64, "device": device}
    image = torch.zeros(1, 1, 4, 4, **like, requires_grad=True)
    rois = torch.tensor([[0.0, 0.75, 2, 8.75, 4]], **like)
    output = deform_roi_pool(
        image, rois, output_size=(2, 1), spatial_scale=1.0, samples_per_part=2, round_rois=False
    )
    # x samples 0.25 and 4.25 (skipped); y samples 1.5, 2.0 and 2.5, 3.0.
    output[0, 0, 0, 0].backward()
    expected = torch.zeros(4, 4, **like)
    expected[1, :2] = torch.tensor([0.75, 0.25], **like) * 0.5 / 2
    expected[2, :2] = torch.tensor([0.75, 0.25], **like) * (0.5 + 1) / 2
    assert_close(image.grad[0, 0], expected)
