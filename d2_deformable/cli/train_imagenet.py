"""Train a backbone on ImageNet, or any ImageFolder, and write its weights for MODEL.WEIGHTS."""

from contextlib import nullcontext
from pathlib import Path

import detectron2.utils.comm as comm
import torch
from detectron2.config import get_cfg

from ..config import add_deformable_config, merge_overrides
from ..engine.imagenet import Classifier, image_folders, save_backbone, train
from ..engine.launch import started_by_torchrun, torchrun_processes
from . import command

EXAMPLE = """
examples:
  d2-deformable train imagenet /data/imagenet
  d2-deformable train imagenet /data/imagenet --arch AIR_26 MODEL.RESNETS.RES2_OUT_CHANNELS 64
  torchrun --nproc_per_node 8 -m d2_deformable train imagenet /data/imagenet --batch-size 256

The folder holds train/<class>/<image> and val/<class>/<image>. An interrupted run continues when it
is started again. configs/Base-AIR.yaml uses the backbone.pth of the first command as MODEL.WEIGHTS.
"""
# Settings shared by the YAMLs of each family. Detectron2's default PIXEL_MEAN is ImageNet's.
FAMILIES = {
    "AIR": ["MODEL.BACKBONE.NAME", "build_aligned_inception_resnet_backbone"]
    + ["MODEL.RESNETS.STRIDE_IN_1X1", False],
    "R": ["MODEL.BACKBONE.NAME", "build_deform_resnet_backbone"]
    + ["MODEL.RESNETS.STRIDE_IN_1X1", True],
}
ARCHITECTURES = ["AIR_26", "AIR_50", "AIR_101", "R_18", "R_34", "R_50", "R_101", "R_152"]


def classifier_cfg(arch: str, opts=()):
    """Config of an architecture, for training from scratch with inputs of unit variance."""
    family, depth = arch.split("_")
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.merge_from_list(
        [
            *FAMILIES[family],
            *("MODEL.RESNETS.DEPTH", int(depth)),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.RESNETS.OUT_FEATURES", ["res5"]),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if int(depth) < 50 and family == "R" else 256),
            *("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
            *("MODEL.PIXEL_STD", [57.375, 57.12, 58.395]),
        ]
    )
    merge_overrides(cfg, opts)
    return cfg


def parser():
    parser = command.parser("train imagenet", __doc__, EXAMPLE)
    parser.add_argument("data", help="folder with train/<class>/<image> and val/<class>/<image>")
    parser.add_argument("--arch", default="AIR_101", choices=ARCHITECTURES)
    parser.add_argument("--output", help="folder of the run (default: output/imagenet_ARCH)")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=256, help="total over all processes")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate for that batch size")
    parser.add_argument("--size", type=int, default=224, help="height and width of the crops")
    parser.add_argument("--num-workers", type=int, default=8, help="image loaders per process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs that change the backbone's config")
    return parser


def main(args):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torchrun_processes(device) if started_by_torchrun() else nullcontext():
        run(args, device)


def run(args, device: str):
    folders = image_folders(args.data, args.size)
    cfg = classifier_cfg(args.arch, args.opts)
    output = Path(args.output or f"output/imagenet_{args.arch}")
    torch.manual_seed(args.seed)
    model = Classifier(cfg, len(folders[0].classes)).to(device)
    train(
        model,
        folders,
        output,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        num_workers=args.num_workers,
        seed=args.seed,
    )
    if comm.is_main_process():
        save_backbone(model, output / "backbone.pth")
        print(f"MODEL.WEIGHTS {output / 'backbone.pth'} needs these settings:")
        for key in ("STRIDE_IN_1X1", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS"):
            print(f"  MODEL.RESNETS.{key} {cfg.MODEL.RESNETS[key]}")
        print(f"  MODEL.PIXEL_MEAN {cfg.MODEL.PIXEL_MEAN}  # BGR")
        print(f"  MODEL.PIXEL_STD {cfg.MODEL.PIXEL_STD}")
