"""DeepLab's head for Detectron2's SemanticSegmentor (paper sec. 2.3)."""

import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn


@SEM_SEG_HEADS_REGISTRY.register()
class DeepLabHead(nn.Module):
    """1x1 convolution + ReLU, 1x1 convolution to class scores, fixed bilinear upsampling.

    As released (deeplab/symbols/resnet_v1_101_deeplab.py): no atrous pyramid, no CRF. The released
    fixed deconvolution (32x32, stride 16, cropped by 8) is `F.interpolate` here. The numbers are
    the same except in a rim of half a stride, where the deconvolution fades towards 0. It fades all
    classes of a pixel by the same factor, so the best class is the same everywhere.

    Shapes: N images, C channels and K classes; (Hf, Wf) = the image's (H, W) over the stride,
    rounded up.

    Args:
        input_shape: {feature name: ShapeSpec}, one feature.
        num_classes: K.
        conv_dims: channels of the hidden layer.
        common_stride: stride of the feature, by which the scores are upsampled.
        norm: of the hidden layer, see `detectron2.layers.get_norm`; "" is none, as released.
        ignore_value: label of pixels that do not count.
        loss_weight: factor on the loss.
        repeat_border: repeat the last row and column of scores, for maps that may end a pixel or
            two before the image does, as with MODEL.RESNETS.STEM_POOL_CEIL.

    Raises:
        ValueError: several features, or one with another stride.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        num_classes: int,
        conv_dims: int = 1024,
        common_stride: int = 16,
        norm: str = "",
        ignore_value: int = 255,
        loss_weight: float = 1.0,
        repeat_border: bool = False,
    ):
        super().__init__()
        strides = {name: shape.stride for name, shape in input_shape.items()}
        if list(strides.values()) != [common_stride]:
            raise ValueError(
                f"DeepLabHead takes one feature of stride MODEL.SEM_SEG_HEAD.COMMON_STRIDE "
                f"{common_stride}; MODEL.SEM_SEG_HEAD.IN_FEATURES gives those of strides {strides}"
            )
        (self.in_feature,) = input_shape
        (shape,) = input_shape.values()
        self.common_stride = common_stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.repeat_border = repeat_border
        self.hidden = Conv2d(
            shape.channels,
            conv_dims,
            kernel_size=1,
            bias=not norm,
            norm=get_norm(norm, conv_dims),
            activation=F.relu,
        )
        self.predictor = nn.Conv2d(conv_dims, num_classes, kernel_size=1)
        for conv in (self.hidden, self.predictor):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    @classmethod
    def from_config(cls, cfg, input_shape):
        c = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: input_shape[name] for name in c.IN_FEATURES},
            "num_classes": c.NUM_CLASSES,
            "conv_dims": c.CONVS_DIM,
            "common_stride": c.COMMON_STRIDE,
            "norm": c.NORM,
            "ignore_value": c.IGNORE_VALUE,
            "loss_weight": c.LOSS_WEIGHT,
            "repeat_border": cfg.MODEL.RESNETS.get("STEM_POOL_CEIL", False),
        }

    def forward(self, features, targets=None):
        """
        Args:
            features: {name: (N, C, Hf, Wf)}.
            targets: class indices (N, H, W) int64, needed for training only.

        Returns:
            training: None, {"loss_sem_seg": scalar}. Otherwise logits (N, K, stride * Hf,
            stride * Wf), whose first H rows and W columns are the image's, and {}. With
            `repeat_border` there are `stride` more rows and columns.
        """
        logits = self.predictor(self.hidden(features[self.in_feature])).float()
        if self.repeat_border:
            logits = F.pad(logits, (0, 1, 0, 1), mode="replicate")
        logits = F.interpolate(
            logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )
        if not self.training:
            return logits, {}
        return None, {"loss_sem_seg": self.loss_weight * self._loss(logits, targets)}

    def _loss(self, logits, targets):
        """Cross entropy, averaged over the labelled pixels of the batch; 0 if there are none."""
        height, width = targets.shape[1:]
        total = F.cross_entropy(
            logits[:, :, :height, :width],
            targets,
            ignore_index=self.ignore_value,
            reduction="sum",
        )
        return total / (targets != self.ignore_value).sum().clamp(min=1)
