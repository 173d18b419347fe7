"""Use without cfg: explicit arguments, in plain Python and in Detectron2's LazyConfig."""

from functools import partial

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, GeneralizedRCNN, StandardROIHeads, build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers
from detectron2.utils.events import EventStorage

from d2_deformable.data import DatasetMapper, WarpedShapesFormat
from d2_deformable.layers import DeformConv2d, DeformRoIPool
from d2_deformable.modeling import (
    DeformCascadeROIHeads,
    DeformResNet,
    DeformROIHeads,
    DeformROIPooler,
    RFCNHeads,
    RFCNOutputLayers,
)

NUM_CLASSES = 3
STAGES = {"res2": 8, "res3": 16, "res4": 32, "res5": 64}


def stages():
    channels = [8, *STAGES.values()]
    return [
        ResNet.make_stage(
            BasicBlock,
            2,
            stride_per_block=[stride, 1],
            in_channels=c_in,
            out_channels=c_out,
            norm="BN",
        )
        for stride, c_in, c_out in zip((1, 2, 2, 2), channels, channels[1:], strict=False)
    ]


def backbone(**kwargs):
    settings = {"out_features": ["res4", "res5_reduced"], "reduced_channels": 16, **kwargs}
    return DeformResNet(BasicStem(3, 8, norm="BN"), stages(), **settings)


def rpn(channels, strides, in_features):
    return RPN(
        in_features=in_features,
        head=StandardRPNHead(in_channels=channels, num_anchors=2),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[4 * stride] for stride in strides], aspect_ratios=[[0.5, 2.0]], strides=strides
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=16,
        positive_fraction=0.5,
        pre_nms_topk=(100, 100),
        post_nms_topk=(30, 30),
    )


def sampling(iou=0.5):
    return {
        "num_classes": NUM_CLASSES,
        "batch_size_per_image": 16,
        "positive_fraction": 0.5,
        "proposal_matcher": Matcher([iou], [0, 1], allow_low_quality_matches=False),
    }


def outputs(shape, layers=FastRCNNOutputLayers, agnostic=False, **kwargs):
    return layers(
        shape,
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=NUM_CLASSES,
        cls_agnostic_bbox_reg=agnostic,
        **kwargs,
    )


def rfcn(**kwargs):
    net = backbone(
        res5_dilation=2,
        deform_num_layers=3,
        offset_groups=2,
        offset_dilation=1,
        modulated=True,
        border="legacy",
    )
    shape = net.output_shape()["res5_reduced"]
    predictor = outputs(shape, RFCNOutputLayers, resolution=3, deformable=True)
    heads = RFCNHeads(
        box_in_features=["res5_reduced"], box_predictor=predictor, **sampling(), **kwargs
    )
    return net, rpn(32, [16], ["res4"]), heads


def rfcn_ohem():
    return rfcn(ohem=True)


def faster_rcnn():
    net = backbone(deform_on_per_stage=[False, False, False, True], modulated=True)
    shape = net.output_shape()["res5_reduced"]
    head = FastRCNNConvFCHead(ShapeSpec(16, 3, 3), conv_dims=[], fc_dims=[16])
    heads = StandardROIHeads(
        box_in_features=["res5_reduced"],
        box_pooler=DeformROIPooler(DeformRoIPool(16, 3), scales=[1 / shape.stride]),
        box_head=head,
        box_predictor=outputs(head.output_shape),
        **sampling(),
    )
    return net, rpn(32, [16], ["res4"]), heads


def fpn():
    levels = list(STAGES)
    bottom_up = backbone(out_features=levels, reduced_channels=0, deform_num_layers=2)
    net = FPN(bottom_up, levels, 8, top_block=LastLevelMaxPool())
    features = ["p2", "p3", "p4", "p5"]
    return net, rpn(8, [4, 8, 16, 32, 64], [*features, "p6"]), features


def level_pooler():
    return DeformROIPooler(DeformRoIPool(8, 3), scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32])


def faster_rcnn_fpn():
    net, proposals, features = fpn()
    head = FastRCNNConvFCHead(ShapeSpec(8, 3, 3), conv_dims=[], fc_dims=[16])
    heads = DeformROIHeads(
        box_in_features=features,
        box_pooler=level_pooler(),
        box_head=head,
        box_predictor=outputs(head.output_shape),
        **sampling(),
    )
    return net, proposals, heads


def cascade_fpn():
    net, proposals, features = fpn()
    box_heads = [
        FastRCNNConvFCHead(ShapeSpec(8, 3, 3), conv_dims=[], fc_dims=[16]) for _ in range(2)
    ]
    settings = sampling()
    matchers = [settings.pop("proposal_matcher"), sampling(0.6)["proposal_matcher"]]
    heads = DeformCascadeROIHeads(
        box_in_features=features,
        box_pooler=level_pooler(),
        box_heads=box_heads,
        box_predictors=[outputs(head.output_shape, agnostic=True) for head in box_heads],
        proposal_matchers=matchers,
        **settings,
    )
    return net, proposals, heads


def detector(parts):
    net, proposals, heads = parts
    return GeneralizedRCNN(
        backbone=net,
        proposal_generator=proposals,
        roi_heads=heads,
        pixel_mean=[103.5, 116.3, 123.7],
        pixel_std=[57.4, 57.1, 58.4],
    )


def trains_and_detects(model, batch):
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer.step()
    with torch.no_grad():
        found = [output["instances"] for output in model.eval()(batch)]
    assert all(torch.isfinite(f.pred_boxes.tensor).all() for f in found)
    assert sum(map(len, found))


@pytest.mark.parametrize("parts", [rfcn, rfcn_ohem, faster_rcnn, faster_rcnn_fpn, cascade_fpn])
def test_detectors_from_explicit_arguments(parts, batch):
    model = detector(parts())
    assert any(isinstance(m, DeformConv2d) for m in model.modules())
    trains_and_detects(model, batch)


def test_it_is_the_network_of_the_yaml(rfcn_cfg, batch):
    rfcn_cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS = 2
    rfcn_cfg.MODEL.RESNETS.DEFORM_OFFSET_DILATION = 1
    rfcn_cfg.MODEL.RESNETS.DEFORM_MODULATED = True
    rfcn_cfg.MODEL.RESNETS.DEFORM_BORDER = "legacy"
    rfcn_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64]]
    rfcn_cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 2.0]]
    theirs = build_model(rfcn_cfg).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.05)
    model = detector(rfcn()).eval()
    assert str(model.backbone) == str(theirs.backbone)
    layer = model.backbone.res5[1].conv2
    assert (layer.offset_groups, layer.modulated, layer.border) == (2, True, "legacy")
    assert layer.conv_offset.out_channels == 2 * 27 and layer.conv_offset.dilation == (1, 1)
    model.pixel_mean.copy_(theirs.pixel_mean)
    model.load_state_dict(theirs.state_dict())
    x = theirs.preprocess_image(batch).tensor
    features, expected = model.backbone(x), theirs.backbone(x)
    assert features.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(features[name], expected[name])
    boxes = [b["instances"].gt_boxes for b in batch]
    torch.testing.assert_close(
        model.roi_heads.box_predictor(features["res5_reduced"], boxes),
        theirs.roi_heads.box_predictor(features["res5_reduced"], boxes),
    )


class WiderResNet(DeformResNet):
    """A user's subclass with one more feature map."""

    def forward(self, x):
        features = super().forward(x)
        return {**features, "twice": torch.cat([features["res4"]] * 2, dim=1)}

    def output_shape(self):
        shapes = super().output_shape()
        four = shapes["res4"]
        return {**shapes, "twice": ShapeSpec(channels=2 * four.channels, stride=four.stride)}


def test_a_subclass_of_the_backbone():
    net = WiderResNet(BasicStem(3, 8), stages(), out_features=["res4"], deform_num_layers=2)
    x = torch.randn(1, 3, 64, 64)
    assert {name: tuple(f.shape[1:]) for name, f in net(x).items()} == {
        "res4": (32, 4, 4),
        "twice": (64, 4, 4),
    }
    assert isinstance(net.res4[1].conv2, DeformConv2d) and not hasattr(net, "res5")


def test_default_stages_of_detectron2():
    with torch.device("meta"):
        net = DeformResNet(
            BasicStem(3, 64, norm="FrozenBN"),
            ResNet.make_default_stages(50, stride_in_1x1=True, norm="FrozenBN"),
            out_features=["res4", "res5"],
            freeze_at=2,
            res5_dilation=2,
            deform_num_layers=3,
        )
    assert [n for n, m in net.named_modules() if isinstance(m, DeformConv2d)] == [
        f"res5.{i}.conv2" for i in range(3)
    ]
    assert net.output_shape()["res5"] == ShapeSpec(channels=2048, stride=16)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"res5_dilation": 0}, "RES5_DILATION is 0"),
        ({"deform_num_layers": 17}, "DEFORM_NUM_LAYERS is 17; this ResNet has 16 3x3"),
        ({"deform_on_per_stage": [True]}, "four flags for res2 to res5"),
        ({"out_features": []}, "OUT_FEATURES is .*; choose at least one of stem, res2"),
        ({"reduced_channels": 0}, "give 'res5_reduced' and a number of channels, or neither"),
    ],
)
def test_bad_arguments_of_the_backbone(change, message):
    with pytest.raises(ValueError, match=message):
        backbone(**change)


SHAPE = ShapeSpec(channels=6, stride=16)


def test_bad_arguments_of_the_heads():
    for shapes in (ShapeSpec(channels=4), [], [ShapeSpec(channels=4, stride=8)] * 2 + [SHAPE]):
        with pytest.raises(ValueError, match="RFCNOutputLayers got .*; expected channels and str"):
            outputs(shapes, RFCNOutputLayers)


def test_data_sets_without_cfg(tmp_path):
    """A format registers like any function in Detectron2's catalog."""
    shapes = WarpedShapesFormat(root=tmp_path, split="val", num_images=2, image_size=64)
    DatasetCatalog.register("shapes_without_cfg", partial(shapes.load, "shapes_without_cfg"))
    try:
        loader = build_detection_test_loader(
            DatasetCatalog.get("shapes_without_cfg"),
            mapper=DatasetMapper(is_train=False, augmentations=[], image_format="BGR"),
        )
        assert [tuple(b[0]["image"].shape) for b in loader] == [(3, 64, 64)] * 2
    finally:
        DatasetCatalog.remove("shapes_without_cfg")


LAZY = """
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead

from d2_deformable.modeling import DeformResNet, RFCNHeads, RFCNOutputLayers

model = L(GeneralizedRCNN)(
    backbone=L(DeformResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="BN"),
        stages=L(ResNet.make_default_stages)(depth=18, norm="BN"),
        out_features=["res4", "res5_reduced"],
        res5_dilation=2,
        deform_num_layers=1,
        reduced_channels=16,
    ),
    proposal_generator=L(RPN)(
        in_features=["res4"],
        head=L(StandardRPNHead)(in_channels=256, num_anchors=3),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[64]], aspect_ratios=[0.5, 1.0, 2.0], strides=[16]
        ),
        anchor_matcher=L(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=16,
        positive_fraction=0.5,
        pre_nms_topk=(100, 100),
        post_nms_topk=(30, 30),
    ),
    roi_heads=L(RFCNHeads)(
        num_classes=3,
        batch_size_per_image=16,
        positive_fraction=0.5,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=["res5_reduced"],
        box_predictor=L(RFCNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=16, stride=16),
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes="${..num_classes}",
            resolution=3,
            deformable=True,
        ),
    ),
    pixel_mean=[103.5, 116.3, 123.7],
    pixel_std=[57.4, 57.1, 58.4],
)
"""


def test_lazy_config(tmp_path, batch):
    (tmp_path / "rfcn.py").write_text(LAZY)
    cfg = LazyConfig.load(str(tmp_path / "rfcn.py"))
    LazyConfig.apply_overrides(cfg, ["model.backbone.deform_num_layers=3"])
    LazyConfig.save(cfg, str(tmp_path / "saved.yaml"))
    model = instantiate(LazyConfig.load(str(tmp_path / "saved.yaml")).model)
    assert sum(isinstance(m, DeformConv2d) for m in model.modules()) == 3
    assert model.roi_heads.num_classes == model.roi_heads.box_predictor.num_classes == 3
    trains_and_detects(model, batch)
