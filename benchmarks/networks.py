"""Plain networks and their deformable twins, from configs/, with random weights."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import torchvision
from torch import nn

from d2_deformable.analysis.complexity import image_as_tested, random_image, random_model
from d2_deformable.cli.command import config_of
from d2_deformable.layers import DeformConv2d, deform_conv2d

CONFIGS = Path(__file__).parents[1] / "configs"
OFFSET_STD = 2.0  # pixels


@dataclass(frozen=True)
class Network:
    """A plain network and its deformable twin.

    Args:
        plain: YAML of the plain network.
        deformable: YAML of the twin, or KEY, VALUE, ... on top of the plain one.
        size: height and width of the image, before the YAML's test setting resizes it.
        paper: net-forward time of the twin relative to the plain network in the paper (table 4).
    """

    name: str
    plain: str
    deformable: str | tuple
    size: tuple[int, int] = (600, 1000)
    backbone_only: bool = False
    paper: float | None = None

    def models(self, device) -> tuple[nn.Module, nn.Module]:
        """Build the plain network and its twin, whose offsets are random."""
        overrides = self.deformable if isinstance(self.deformable, tuple) else ()
        twin = self.plain if overrides else self.deformable
        plain, deformable = (
            self._model(self.plain, (), device),
            self._model(twin, overrides, device),
        )
        self.spread_offsets(deformable, self.draw(device, shrink=4))
        return plain, deformable

    def _cfg(self, yaml, overrides, device):
        return config_of(
            str(CONFIGS / yaml), ["MODEL.DEVICE", str(device), *overrides], needs_data=False
        )

    def _model(self, yaml, overrides, device):
        model = random_model(self._cfg(yaml, overrides, device))
        return model.backbone if self.backbone_only else model

    def draw(self, device, shrink: int = 1):
        """Draw noise: (1, 3, H, W) for a backbone, else in Detectron2's input format.

        Args:
            shrink: factor by which height and width are divided.
        """
        cfg = self._cfg(self.plain, (), device)
        cfg.INPUT.MIN_SIZE_TEST //= shrink
        cfg.INPUT.MAX_SIZE_TEST //= shrink
        inputs = image_as_tested(cfg, random_image(self.size))
        noise = torch.randint(0, 256, inputs["image"].shape, device=device)
        if self.backbone_only:
            return noise[None].float() - 128
        return [inputs | {"image": noise.to(torch.uint8)}]

    @staticmethod
    @torch.no_grad()
    def spread_offsets(model: nn.Module, inputs) -> None:
        """Set random weights in the convolutions that predict offsets.

        They are scaled so that offsets have a standard deviation of OFFSET_STD on these inputs.
        """

        def scale(conv, arguments, offsets):
            factor = OFFSET_STD / offsets.std()
            conv.weight.mul_(factor)
            return factor * offsets

        handles = []
        for layer in model.modules():
            if isinstance(layer, DeformConv2d):
                nn.init.normal_(layer.conv_offset.weight)
                handles.append(layer.conv_offset.register_forward_hook(scale))
        model(inputs)
        for handle in handles:
            handle.remove()


@contextmanager
def torchvision_inside():
    """Make deformable convolutions call torchvision's operator."""

    def function(*args, border, **kwargs):
        return torchvision.ops.deform_conv2d(*args, **kwargs)

    with patch.object(deform_conv2d, "deform_conv2d", function):
        yield


RFCN = "VOC-Detection/rfcn_R_101"
FASTER_RCNN = "VOC-Detection/faster_rcnn_R_101"
CLASS_AWARE_RPN = "VOC-Detection/class_aware_rpn_R_101"
DEEPLAB_VOC = "VOC-SemanticSegmentation/deeplab_R_101"
DEEPLAB_CITYSCAPES = "Cityscapes-SemanticSegmentation/deeplab_R_101"


def backbone(name, plain, layers: int, groups: int, **others) -> Network:
    keys = ("MODEL.RESNETS.DEFORM_NUM_LAYERS", "MODEL.RESNETS.DEFORM_NUM_GROUPS")
    name = f"{name} backbone, {layers} deformable layers, G={groups}"
    overrides = (keys[0], layers, keys[1], groups)
    return Network(name, plain, overrides, backbone_only=True, **others)


NETWORKS = [
    *(backbone("ResNet-101", f"{RFCN}.yaml", n, groups) for n in (3, 6) for groups in (4, 1)),
    Network("R-FCN", f"{RFCN}.yaml", f"{RFCN}_dconv3_dpool.yaml", paper=1.182),
    Network("Faster R-CNN", f"{FASTER_RCNN}.yaml", f"{FASTER_RCNN}_dconv3_dpool.yaml", paper=1.306),
    Network(
        "class-aware RPN", f"{CLASS_AWARE_RPN}.yaml", f"{CLASS_AWARE_RPN}_dconv3.yaml", paper=1.070
    ),
    Network(
        "DeepLab VOC", f"{DEEPLAB_VOC}.yaml", f"{DEEPLAB_VOC}_dconv3.yaml", (360, 480), paper=1.048
    ),
    Network(
        "DeepLab Cityscapes",
        f"{DEEPLAB_CITYSCAPES}.yaml",
        f"{DEEPLAB_CITYSCAPES}_dconv3.yaml",
        (1024, 2048),
        paper=1.075,
    ),
]

# Small networks for smoke tests.
QUICK = "quick/warped_shapes"
REDUCED = [
    backbone("ResNet-18", f"{QUICK}_rfcn_R_18.yaml", 3, 4, size=(64, 96)),
    *(
        Network(name, f"{QUICK}_{yaml}.yaml", f"{QUICK}_{yaml}_{twin}.yaml", (64, 96))
        for name, yaml, twin in (
            ("R-FCN", "rfcn_R_18", "dconv3_dpool"),
            ("Faster R-CNN", "faster_rcnn_R_18", "dconv3_dpool"),
            ("class-aware RPN", "class_aware_rpn_R_18", "dconv3"),
            ("DeepLab", "deeplab_R_18", "dconv3"),
        )
    ),
]
