"""TorchVision's detection, segmentation and classification models, made deformable."""

from torch import nn

from ..layers import deform_convs, kernel_convs


def deformable(model: nn.Module, last: int = 3, **options) -> nn.Module:
    """Make the last convolutions of a model's backbone deformable, in place (paper table 1).

    Weights, normalisation layers and their names stay; `<name>.conv_offset.*` is new and starts at
    zero, so the model computes what it did, up to rounding. Load weights before or after, the plain
    model's with `strict=False`. Build the optimizer afterwards. Offsets are trained even in layers
    that `trainable_backbone_layers` freezes. Convolutions of heads:
    `d2_deformable.layers.deform_modules`.

    Args:
        model: any with a ResNet or other convolutional network in `backbone.body` (Faster, Mask and
            Keypoint R-CNN, RetinaNet, FCOS), in `backbone` (DeepLab, FCN, LR-ASPP, SSD), or the
            network itself.
        last: how many of the network's last convolutions larger than 1x1, in network order. The
            paper uses 3: in a ResNet-50, `layer4.{0,1,2}.conv2`.
        options: offset_groups, offset_dilation, modulated, max_offset, border of
            `d2_deformable.layers.DeformConv2d`.

    Returns:
        `model`.

    Raises:
        ValueError: the network has fewer such convolutions, or one that has no deformable twin, see
            `DeformConv2d.from_conv`.

    Example:
        >>> from torchvision.models.detection import fasterrcnn_resnet50_fpn
        >>> model = deformable(fasterrcnn_resnet50_fpn(weights_backbone=None))
        >>> model.backbone.body.layer4[0].conv2.offset_groups
        1
    """
    backbone = getattr(model, "backbone", model)
    network = getattr(backbone, "body", backbone)
    names = list(kernel_convs(network))
    if not 0 <= last <= len(names):
        raise ValueError(
            f"deformable: last is {last}; expected 0 to {len(names)}, the number of convolutions "
            f"larger than 1x1 in this {type(model).__name__}'s backbone"
        )
    deform_convs(network, names[len(names) - last :], **options)
    return model
