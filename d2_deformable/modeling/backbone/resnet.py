"""ResNet-18 to 152 of any width, dilated and deformable.

The plain network is built from Detectron2's blocks; `layers/conversion.py` changes its last
convolutions.
"""

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

from ...layers import deform_convs, kernel_convs
from .._checks import check_config
from .checkpointing import CheckpointedStage
from .dilate import dilate_stage

BLOCKS_PER_STAGE = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}
REDUCED = "res5_reduced"
# The last stage that each feature map needs.
LAST_STAGE = {"stem": 1, "res2": 2, "res3": 3, "res4": 4, "res5": 5, REDUCED: 5}


class CeilPoolStem(BasicStem):
    """Detectron2's stem with the max pooling of Caffe and the released networks: without padding,
    with sizes rounded up.

    Shapes: (N, C, H, W) -> (N, out_channels, h, w). h is floor(H / 4), plus one for H = 4n + 3; w
    likewise. Each cell is half a cell further down and right in the image than Detectron2's.
    """

    def forward(self, x):
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)


class DeformResNet(ResNet):
    """Detectron2's ResNet, dilated and deformable, with one more feature map, "res5_reduced".

    Args:
        stem, out_features, freeze_at: see `detectron2.modeling.ResNet`.
        stages: plain res2, res3, ... as `detectron2.modeling.ResNet` takes them, e.g. from its
            `make_default_stages`; changed in place. Those above the highest of `out_features` are
            left out, so that "the last n" counts only layers that run.
        res5_dilation: above 1, res5 keeps the stride of res4 and dilates its 3x3 convolutions.
        deform_num_layers: how many of the last 3x3 convolutions, in network order, are deformable.
        deform_on_per_stage: whether all 3x3 convolutions of res2, res3, res4, res5 are deformable.
        deform_layers: names of further convolutions to make deformable, e.g. "res4.20.conv2".
        offset_groups, offset_dilation, modulated, max_offset, border: of every deformable
            convolution, see `d2_deformable.layers.DeformConv2d`.
        reduced_channels: channels of "res5_reduced", a 1x1 convolution + ReLU on res5 (paper sec.
            2.3: 1024, or 256 for Faster R-CNN). Needed when it is among `out_features`.
        reduced_init_std: standard deviation of that convolution's initial weights; 0 uses He
            initialisation.
        activation_checkpoint: in training, keep only the inputs of the blocks and recompute the
            rest in the backward pass: less memory for one more forward pass, with equal gradients.

    Raises:
        ValueError: a value that this network cannot have.
    """

    def __init__(
        self,
        stem,
        stages,
        *,
        out_features,
        freeze_at=0,
        res5_dilation=1,
        deform_num_layers=0,
        deform_on_per_stage=(False, False, False, False),
        deform_layers=(),
        offset_groups=1,
        offset_dilation=0,
        modulated=False,
        max_offset=0.0,
        border="zero",
        reduced_channels=0,
        reduced_init_std=0.01,
        activation_checkpoint=False,
    ):
        _check_features(out_features, reduced_channels)
        if res5_dilation < 1 or len(deform_on_per_stage) != 4:
            raise ValueError(
                f"MODEL.RESNETS.RES5_DILATION is {res5_dilation} and DEFORM_ON_PER_STAGE is "
                f"{list(deform_on_per_stage)}; expected at least 1, and four flags for res2 to res5"
            )
        stages = stages[: max(LAST_STAGE[feature] for feature in out_features) - 1]
        # The same blocks under their final names, to walk them in network order.
        network = nn.ModuleDict(
            {f"res{i}": nn.Sequential(*blocks) for i, blocks in enumerate(stages, start=2)}
        )
        if res5_dilation > 1 and "res5" in network:
            dilate_stage(network["res5"], res5_dilation)
        last = _last_names(network, deform_num_layers)
        flagged = [f"res{i}." for i, flag in enumerate(deform_on_per_stage, start=2) if flag]
        of_stages = [name for name in kernel_convs(network) if name.startswith(tuple(flagged))]
        deform_convs(
            network,
            dict.fromkeys([*last, *of_stages, *deform_layers]),
            offset_groups=offset_groups,
            offset_dilation=offset_dilation,
            modulated=modulated,
            max_offset=max_offset,
            border=border,
        )
        plain_features = [f for f in out_features if f != REDUCED]
        super().__init__(
            stem,
            stages,
            out_features=list({*plain_features, "res5"}) if reduced_channels else plain_features,
            freeze_at=freeze_at,
        )
        if activation_checkpoint:
            self.stages = [CheckpointedStage(*stage) for stage in self.stages]
            for name, stage in zip(self.stage_names, self.stages, strict=True):
                setattr(self, name, stage)
        self._requested = list(out_features)
        if reduced_channels:
            channels = super().output_shape()["res5"].channels
            self.reduction = nn.Conv2d(channels, reduced_channels, kernel_size=1)
            c2_msra_fill(self.reduction)
            if reduced_init_std:
                nn.init.normal_(self.reduction.weight, std=reduced_init_std)

    def forward(self, x):
        """(N, 3, H, W) -> {feature name: (N, C, H / stride, W / stride)}."""
        features = super().forward(x)
        if REDUCED in self._requested:
            features[REDUCED] = F.relu_(self.reduction(features["res5"]))
        return {name: features[name] for name in self._requested}

    def output_shape(self):
        shapes = super().output_shape()
        if REDUCED in self._requested:
            channels, stride = self.reduction.out_channels, shapes["res5"].stride
            shapes[REDUCED] = ShapeSpec(channels=channels, stride=stride)
        return {name: shapes[name] for name in self._requested}


def _check_features(out_features, reduced_channels) -> None:
    if not out_features or not set(out_features) <= LAST_STAGE.keys():
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES is {list(out_features)}; choose at least one of "
            f"{', '.join(LAST_STAGE)}"
        )
    if (REDUCED in out_features) != (reduced_channels > 0):
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES is {list(out_features)} and REDUCED_CHANNELS is "
            f"{reduced_channels}: give {REDUCED!r} and a number of channels, or neither"
        )


def _last_names(network: nn.ModuleDict, num_layers: int) -> list[str]:
    """The last `num_layers` names of `kernel_convs(network)`."""
    names = list(kernel_convs(network))
    if not 0 <= num_layers <= len(names):
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_NUM_LAYERS is {num_layers}; this ResNet has {len(names)} 3x3 "
            "convolutions after its stem"
        )
    return names[len(names) - num_layers :]


@BACKBONE_REGISTRY.register()
def build_deform_resnet_backbone(cfg, input_shape):
    """Build a plain, dilated or deformable ResNet from MODEL.RESNETS.

    It differs from Detectron2's `build_resnet_backbone` as follows:

    - DEPTH 18 and 34 may have any width (STEM_OUT_CHANNELS, RES2_OUT_CHANNELS).
    - RES5_DILATION may be any number; above 1, res5 keeps stride 16.
    - The last DEFORM_NUM_LAYERS 3x3 convolutions, those of the stages flagged in
      DEFORM_ON_PER_STAGE and those named in DEFORM_LAYERS are deformable.
    - "res5_reduced" is a feature map.

    Raises:
        ValueError: a value that this network cannot have.
    """
    return build_network(cfg, input_shape, BLOCKS_PER_STAGE, _block)


def _block(c, stage: int) -> dict:
    """Arguments of `ResNet.make_stage` for the blocks of res2 (`stage` 0) to res5."""
    if c.DEPTH < 50:
        return {"block_class": BasicBlock}
    return {
        "block_class": BottleneckBlock,
        "bottleneck_channels": c.NUM_GROUPS * c.WIDTH_PER_GROUP * 2**stage,
        "stride_in_1x1": c.STRIDE_IN_1X1,
        "num_groups": c.NUM_GROUPS,
    }


def build_network(cfg, input_shape, blocks_per_stage, block) -> DeformResNet:
    """Build a `DeformResNet` with any kind of block from MODEL.RESNETS.

    Args:
        input_shape: ShapeSpec with the channels of the image.
        blocks_per_stage: {DEPTH: [blocks of res2, res3, res4, res5]}.
        block: function of MODEL.RESNETS and a stage, from 0, that returns further arguments of
            `ResNet.make_stage`: block_class and the arguments of that class.

    Raises:
        ValueError: a value that this network cannot have.
    """
    check_config(cfg)
    c = cfg.MODEL.RESNETS
    if c.DEPTH not in blocks_per_stage:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is {c.DEPTH}; choose one of {sorted(blocks_per_stage)}"
        )
    stages = []
    in_channels, out_channels = c.STEM_OUT_CHANNELS, c.RES2_OUT_CHANNELS
    for stage, num_blocks in enumerate(blocks_per_stage[c.DEPTH]):
        stages.append(
            ResNet.make_stage(
                num_blocks=num_blocks,
                stride_per_block=[1 if stage == 0 else 2] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=c.NORM,
                **block(c, stage),
            )
        )
        in_channels, out_channels = out_channels, out_channels * 2
    stem = CeilPoolStem if c.STEM_POOL_CEIL else BasicStem
    return DeformResNet(
        stem(input_shape.channels, c.STEM_OUT_CHANNELS, norm=c.NORM),
        stages,
        **deform_settings(cfg),
    )


def deform_settings(cfg) -> dict:
    """The keyword arguments of `DeformResNet` from cfg that do not depend on the blocks."""
    c = cfg.MODEL.RESNETS
    return {
        "out_features": c.OUT_FEATURES,
        "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        "res5_dilation": c.RES5_DILATION,
        "deform_num_layers": c.DEFORM_NUM_LAYERS,
        "deform_on_per_stage": c.DEFORM_ON_PER_STAGE,
        "deform_layers": c.DEFORM_LAYERS,
        "offset_groups": c.DEFORM_NUM_GROUPS,
        "offset_dilation": c.DEFORM_OFFSET_DILATION,
        "modulated": c.DEFORM_MODULATED,
        "max_offset": c.DEFORM_OFFSET_CLAMP,
        "border": c.DEFORM_BORDER,
        "reduced_channels": c.REDUCED_CHANNELS,
        "reduced_init_std": c.REDUCED_INIT_STD,
        "activation_checkpoint": cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINT,
    }
