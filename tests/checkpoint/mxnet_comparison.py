"""Compare converted networks with those of `mxnet_networks.py`, on small random networks."""

from functools import cache

import torch
from checkpoint import mxnet_networks as source
from checkpoint.mxnet_networks import Network
from detectron2.modeling import build_model

from d2_deformable.checkpoint.convert import Conversion
from d2_deformable.checkpoint.convert.mxnet import convert
from d2_deformable.modeling import predict_raw
from yamls import CONFIGS, load

TOLERANCE = 1e-4
PIXELS = 1e-3
YAML = {
    ("rfcn", False): "VOC-Detection/rfcn_R_50.yaml",
    ("rfcn", True): "VOC-Detection/rfcn_R_50_dconv3_dpool.yaml",
    ("faster_rcnn", False): "VOC-Detection/faster_rcnn_R_50.yaml",
    ("faster_rcnn", True): "VOC-Detection/faster_rcnn_R_50_dconv3_dpool.yaml",
    ("fpn", False): "COCO-Detection/faster_rcnn_R_101_FPN_ohem.yaml",
    ("fpn", True): "COCO-Detection/faster_rcnn_R_101_FPN_ohem_dcn.yaml",
    ("deeplab", False): "VOC-SemanticSegmentation/deeplab_R_101.yaml",
    ("deeplab", True): "VOC-SemanticSegmentation/deeplab_R_101_dconv3.yaml",
    ("imagenet", False): "VOC-Detection/rfcn_R_101.yaml",
}
DETECTORS = [key for key in YAML if key[0] in ("rfcn", "faster_rcnn", "fpn")]
TO_LAST_PIXEL = torch.tensor([0, 0, 1, 1], dtype=torch.float64)
OVERRIDES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RPN.CONV_DIMS": [16],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 32, 64]],
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 24,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 24,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
    "TEST.DETECTIONS_PER_IMAGE": 300,
}


@cache
def network(kind, deform):
    return Network(
        kind,
        deform,
        units=(3, 4, 6 if kind in ("rfcn", "faster_rcnn") else 23, 3),
        width=8,
        reduced=16,
        rpn_channels=16,
        hidden=24,
        classes=4,
        scales=(8,) if kind == "fpn" else (1, 2, 4),
        rois=40,
    )


def config(kind, deform, overrides=None):
    cfg = load(CONFIGS / YAML[kind, deform])
    sizes = {}
    if kind == "fpn":
        sizes = {"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]]}
    for key, value in (OVERRIDES | sizes | (overrides or {})).items():
        cfg.merge_from_list([key, value])
    if cfg.MODEL.RESNETS.REDUCED_CHANNELS and not overrides:
        cfg.MODEL.RESNETS.REDUCED_CHANNELS = 16
    return cfg


@cache
def params(kind, deform):
    return source.random_params(network(kind, deform))


@cache
def rgb():
    return torch.rand(3, 178, 151, generator=torch.Generator().manual_seed(1)) * 255


def pixels(image=None):
    """The image as the source network takes it."""
    image = rgb() if image is None else image
    return (image - torch.tensor(source.MEAN)[:, None, None])[None].double()


def image_for(kind):
    """The released FPN clips boxes to the image padded to a multiple of 32, so it gets such one."""
    return rgb()[:, :96, :64] if kind == "fpn" else rgb()


@cache
def expected(kind, deform):
    image = pixels(image_for(kind))
    if kind == "deeplab":
        return source.segment(params(kind, deform), network(kind, deform), image)
    return source.detect(params(kind, deform), network(kind, deform), image)


def converted(tensors, cfg):
    conversion = Conversion(tensors, build_model(cfg).state_dict())
    convert(conversion, cfg)
    conversion.check()
    return conversion


def build(cfg, conversion, changes=()):
    """Build the model with the converted weights, fewer proposals and changed settings."""
    cfg = cfg.clone()
    fewer = {"MODEL.RPN.POST_NMS_TOPK_TEST": 40}
    for key, value in (conversion.settings | fewer | dict(changes)).items():
        cfg.merge_from_list([key, value])
    model = build_model(cfg).eval()
    model.load_state_dict(conversion.weights)
    return model


@cache
def small(kind, deform):
    cfg = config(kind, deform)
    return cfg, converted(params(kind, deform), cfg)


def distance(ours, theirs):
    if ours.shape != theirs.shape:
        return float("inf")
    return (ours.double() - theirs).abs().max().item()


def largest(function, ours, theirs):
    return max(function(a, b) for a, b in zip(ours, theirs, strict=True))


def set_distance(ours, theirs):
    """Largest distance of rows in any order, since nearly equal scores may swap places."""
    if len(ours) != len(theirs):
        return float("inf")
    distances = torch.cdist(ours.double(), theirs, p=float("inf"))
    return max(distances.amin(dim=0).max().item(), distances.amin(dim=1).max().item())


@torch.no_grad()
def differences(model, theirs, net, image=None):
    """{output: largest difference of a detector from its source}; boxes in hundreds of pixels."""
    image = image_for(net.kind) if image is None else image
    inputs = [{"image": image.flip(0) if model.input_format == "BGR" else image}]
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    rpn = model.proposal_generator
    maps = [features[name] for name in rpn.in_features]
    logits, _ = rpn.rpn_head(maps)
    few, rpn.post_nms_topk = rpn.post_nms_topk, {False: 2000 if net.kind == "fpn" else 300}
    (proposals,), _ = rpn(images, features, None)
    rpn.post_nms_topk = few
    ((boxes, probs),) = predict_raw(model, inputs)
    # This package orders anchors by size, then by ratio; the source by ratio, then by size.
    order = torch.arange(len(net.ratios) * len(net.scales))
    order = order.view(len(net.ratios), len(net.scales)).t().flatten()
    box_scale = TOLERANCE / PIXELS
    result = model(inputs)[0]["instances"]
    # A box may begin anywhere in the last pixel here, but only at that pixel's first edge there.
    last = torch.tensor(image.shape[:0:-1] * 2) - 1
    boxes_and_more = [
        (result.pred_boxes.tensor - TO_LAST_PIXEL).minimum(last) * box_scale,
        result.scores[:, None],
        result.pred_classes[:, None] + 1,
    ]
    return {
        "maps": largest(distance, maps, theirs["maps"].values()),
        "objectness": largest(
            lambda ours, objects: distance(ours[0].sigmoid(), objects[order]),
            logits,
            theirs["rpn_prob"],
        ),
        "scores of proposals": distance(proposals.objectness_logits.sigmoid(), theirs["scores"]),
        "proposals": box_scale
        * distance(proposals.proposal_boxes.tensor - TO_LAST_PIXEL, theirs["proposals"]),
        # The source has the background as its first class.
        "probabilities": distance(probs.roll(1, dims=1), theirs["probs"]),
        "boxes": box_scale
        * distance((boxes - TO_LAST_PIXEL).minimum(last), theirs["boxes"][:, 1:]),
        "detections": set_distance(
            torch.cat(boxes_and_more, dim=1),
            source.detections(theirs, net) * theirs["rois"].new_tensor([box_scale] * 4 + [1, 1]),
        ),
    }


@torch.no_grad()
def difference_of_scores(model, theirs):
    """The largest difference from DeepLab's scores.

    DeepLab's deconvolution fades out towards the border of the map by a factor that all classes
    share. This package's head leaves that factor out.
    """
    image = rgb().flip(0)
    inputs = [{"image": image, "height": image.shape[1], "width": image.shape[2]}]
    cells = model.backbone(pixels().float().flip(1))["res5"][:, :1]
    height, width = theirs.shape[2:]
    faded = torch.nn.functional.conv_transpose2d(
        torch.ones_like(cells).double(),
        params("deeplab", False)["arg:upsampling_weight"][:1].double(),
        stride=source.STRIDE,
    )[:, :, 8 : 8 + height, 8 : 8 + width]
    return distance(model(inputs)[0]["sem_seg"], (theirs / faded)[0])
