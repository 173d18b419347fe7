"""DeepLab's head: the released deconvolution, the loss, and its use in SemanticSegmentor."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from d2_deformable.modeling import DeepLabHead


def make_head(stride=16, **kwargs):
    shape = {"res5": ShapeSpec(channels=6, stride=stride)}
    return DeepLabHead(shape, **{"num_classes": 4, "conv_dims": 8, **kwargs})


def released_deconvolution(scores, stride=16):
    """Fixed bilinear 32x32 deconvolution with stride 16 and one group per class, cropped by 8."""
    size, classes = 2 * stride, scores.shape[1]
    ramp = 1 - (torch.arange(size) / stride - (size - 1) / size).abs()
    weight = (ramp[:, None] * ramp).expand(classes, 1, size, size).to(scores)
    full = F.conv_transpose2d(scores, weight, stride=stride, groups=classes)
    crop = stride // 2
    return full[:, :, crop:-crop, crop:-crop]


@pytest.mark.parametrize("size", [(5, 7), (1, 3), (1, 1)])
def test_upsampling_is_the_released_deconvolution(size):
    head = make_head().eval()
    for conv in (head.hidden, head.predictor):  # so that classes compete
        nn.init.normal_(conv.weight)
    features = {"res5": torch.randn(2, 6, *size)}
    with torch.no_grad():
        logits, losses = head(features)
        released = released_deconvolution(head.predictor(head.hidden(features["res5"])))
    assert losses == {}
    assert logits.shape == (2, 4, 16 * size[0], 16 * size[1])
    # Neighbours outside the map count as 0 there, which scales the output as it scales ones.
    fade = released_deconvolution(torch.ones(1, 1, *size))
    torch.testing.assert_close(released, logits * fade, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fade[..., 8:-8, 8:-8], torch.ones_like(fade)[..., 8:-8, 8:-8])
    assert fade.min() > 0
    assert torch.equal(logits.argmax(1), released.argmax(1))


def test_scores_for_maps_that_end_before_the_image():
    """The scores are the same, with the last row and column repeated once."""
    head = make_head().eval()
    features = {"res5": torch.randn(1, 6, 2, 3)}
    with torch.no_grad():
        plain = head(features)[0]
        head.repeat_border = True
        longer = head(features)[0]
    assert longer.shape == (1, 4, 48, 64)
    torch.testing.assert_close(longer[..., :32, :48], plain)
    torch.testing.assert_close(longer[..., 32:, :48], plain[..., -1:, :].expand(-1, -1, 16, -1))


def test_initial_layers():
    head = make_head(conv_dims=1024, num_classes=256)
    for conv in (head.hidden, head.predictor):
        assert conv.kernel_size == (1, 1)
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not conv.bias.any()


def test_hidden_layer_is_rectified():
    head = make_head().eval()
    with torch.no_grad():
        head.hidden.bias.fill_(-1e6)
        head.predictor.bias.copy_(torch.arange(4.0))
        logits, _ = head({"res5": torch.randn(1, 6, 2, 2)})
    assert torch.equal(logits, torch.arange(4.0)[:, None, None].expand(1, 4, 32, 32))


def test_loss_is_the_mean_over_labelled_pixels():
    head = make_head(loss_weight=0.5)
    head.predictor.weight.data.normal_()
    features = {"res5": torch.randn(2, 6, 3, 4)}
    targets = torch.randint(0, 4, (2, 45, 61))  # no multiple of 16: the image is 45 x 61
    targets[0, :20] = 255
    targets[1, :, 7:] = 255
    results, losses = head(features, targets)
    assert results is None
    logits, _ = head.eval()(features)
    log_probability = logits[:, :, :45, :61].log_softmax(1)
    terms = [
        -log_probability[n, targets[n, y, x], y, x]
        for n, y, x in (targets != 255).nonzero().tolist()
    ]
    torch.testing.assert_close(losses["loss_sem_seg"], 0.5 * torch.stack(terms).mean())


def test_loss_of_a_batch_without_labels_is_zero():
    head = make_head(ignore_value=7)
    _, losses = head({"res5": torch.randn(1, 6, 2, 2)}, torch.full((1, 30, 30), 7))
    assert losses["loss_sem_seg"] == 0
    losses["loss_sem_seg"].backward()
    assert not any(p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("strides", [{"res5": 32}, {"res4": 16, "res5": 16}])
def test_other_features_are_refused(strides):
    shapes = {name: ShapeSpec(channels=6, stride=s) for name, s in strides.items()}
    with pytest.raises(ValueError, match="one feature of stride .*COMMON_STRIDE 16.*IN_FEATURES"):
        DeepLabHead(shapes, num_classes=4)


@pytest.fixture
def deeplab(cfg):
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "DeformSegmentor"),
            *("MODEL.BACKBONE.NAME", "build_deform_resnet_backbone"),
            *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES5_DILATION", 2),
            *("MODEL.RESNETS.OUT_FEATURES", ["res5"]),
            *("MODEL.SEM_SEG_HEAD.NAME", "DeepLabHead"),
            *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5"]),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 5),
            *("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 16, "MODEL.SEM_SEG_HEAD.NORM", "BN"),
            *("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 9, "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 2.0),
        ]
    )
    return build_model(cfg)


def test_keys_reach_the_head(deeplab):
    head = deeplab.sem_seg_head
    assert isinstance(head, DeepLabHead)
    assert head.hidden.norm.num_features == 5
    assert (head.hidden.out_channels, head.predictor.out_channels) == (5, 3)
    assert (head.ignore_value, head.loss_weight, head.common_stride) == (9, 2.0, 16)


def test_no_image_is_reported(deeplab):
    for mode in (deeplab.train(), deeplab.eval()):
        with pytest.raises(ValueError, match="DeformSegmentor got no image; expected a list"):
            mode([])


def test_the_size_of_the_result_is_the_inputs_where_none_is_asked_for(deeplab):
    image = torch.zeros(3, 40, 50)
    deeplab.eval()
    for size, requested in (((40, 50), {}), ((20, 30), {"height": 20, "width": 30})):
        (result,) = deeplab([{"image": image} | requested])
        assert result["sem_seg"].shape == (3, *size)


def test_norm_of_the_hidden_layer():
    head = make_head(norm="BN")
    assert head.hidden.bias is None and head.hidden.norm.num_features == 8


def test_odd_images_of_several_sizes(deeplab):
    sizes = [(33, 50), (47, 35)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    inputs = [
        {"image": image, "sem_seg": torch.zeros(size, dtype=torch.int64), "height": 70, "width": 90}
        for image, size in zip(images, sizes)
    ]
    with EventStorage():
        (loss,) = deeplab(inputs).values()
    loss.backward()
    assert torch.isfinite(loss)
    deeplab.eval()
    with torch.no_grad():
        for output in deeplab(inputs):
            assert output["sem_seg"].shape == (3, 70, 90)
