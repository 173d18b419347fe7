"""Image classification on an ImageFolder, to pre-train backbones without published weights.

The recipe is that of the paper's appendix A, which follows ResNet's: crops of 224 x 224, SGD with a
learning rate of 0.1 for batches of 256, divided by 10 after each third of the epochs. Crops are
those of torchvision.
"""

import json
from pathlib import Path

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.data import DatasetFromList
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ..checkpoint.files import read_content
from ..data.train_loader import prepare_worker
from ..utils.files import replacing
from ..utils.pixels import read_image

LAYOUT = "expected train/<class>/<image> and val/<class>/<image> with the same classes"


class Classifier(nn.Module):
    """A backbone, global average pooling and one fully connected layer.

    Normalises by MODEL.PIXEL_MEAN and PIXEL_STD in BGR, as Detectron2's networks do, so that a
    detector with the same two keys sees the inputs its backbone was trained on.

    Args:
        cfg: MODEL.BACKBONE.NAME and the keys it reads. The last of MODEL.RESNETS.OUT_FEATURES is
            classified.
        num_classes: number of classes of the data set.
    """

    def __init__(self, cfg, num_classes: int):
        super().__init__()
        self.backbone = build_backbone(cfg, ShapeSpec(channels=3))
        self.feature = cfg.MODEL.RESNETS.OUT_FEATURES[-1]
        self.linear = nn.Linear(self.backbone.output_shape()[self.feature].channels, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        for name in ("PIXEL_MEAN", "PIXEL_STD"):
            values = torch.tensor(cfg.MODEL[name]).view(3, 1, 1)
            self.register_buffer(name.lower(), values, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify RGB images (N, 3, H, W) in 0..255: logits (N, num_classes)."""
        bgr = (images.flip(1) - self.pixel_mean) / self.pixel_std
        return self.linear(self.backbone(bgr)[self.feature].mean(dim=(2, 3)))


def image_folders(root, size: int) -> tuple[ImageFolder, ImageFolder]:
    """Data sets of root/train with random crops, and of root/val with centre crops.

    An image is an RGB tensor (3, size, size) in 0..255.

    Raises:
        FileNotFoundError: a folder is missing or has no classes, or a class has no images.
        ValueError: the two folders have different classes.
    """
    crops = {
        "train": [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()],
        "val": [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)],
    }
    folders = []
    for split, crop in crops.items():
        try:
            transform = transforms.Compose([*crop, transforms.PILToTensor()])
            folder = ImageFolder(Path(root) / split, transform, loader=_open)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{Path(root) / split}: {error}; {LAYOUT}") from error
        # A list of Python objects would be copied into every worker, as it reads them.
        folder.samples = folder.imgs = DatasetFromList(folder.samples, copy=False)
        folders.append(folder)
    train, val = folders
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))
        raise ValueError(
            f"{root}: {len(different)} classes are not in both train and val, the first is "
            f"{different[0]}; {LAYOUT}"
        )
    return train, val


def _open(file: str) -> Image.Image:
    return Image.fromarray(read_image(file))


def learning_rate(base: float, epoch: int, epochs: int) -> float:
    """Step schedule: divide `base` by 10 after a third of the epochs, by 100 after two thirds."""
    return base * 0.1 ** (3 * epoch // epochs)


def train(
    model: Classifier,
    folders: tuple[ImageFolder, ImageFolder],
    output,
    *,
    epochs=90,
    batch_size=256,
    lr=0.1,
    weight_decay=1e-4,
    num_workers=8,
    seed=0,
) -> dict:
    """Train `model`, continuing from output/checkpoint.pth if that exists.

    Each epoch appends a line to output/metrics.json. An interrupted run continues with the same
    numbers as an uninterrupted one.

    Args:
        model: on its device; wrapped by DistributedDataParallel if there is a process group.
        folders: data sets to train and to test on, see `image_folders`.
        output: a folder, created if it does not exist.
        batch_size: total images per step, over all processes.
        lr: learning rate for that batch size.

    Returns:
        The last line of metrics.json: epoch, lr, loss, top1 and top5 in %.

    Raises:
        ValueError: `epochs` is 0; `batch_size` is not a multiple of the number of processes, or
            exceeds the number of images; or the checkpoint is from another network or number of
            classes.
        FloatingPointError: training diverged.
    """
    if epochs < 1:
        raise ValueError(f"{epochs} epochs: choose at least 1")
    world, rank = comm.get_world_size(), comm.get_rank()
    if batch_size % world or not batch_size <= len(folders[0]):
        raise ValueError(
            f"a batch of {batch_size} from {len(folders[0])} images in {world} processes: choose a "
            "multiple of the processes, and no more than the images"
        )
    sampler = DistributedSampler(folders[0], world, rank, seed=seed, drop_last=True)
    loading = {
        "batch_size": batch_size // world,
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": prepare_worker,
    }
    loader = DataLoader(folders[0], sampler=sampler, drop_last=True, **loading)
    of_rank = Subset(folders[1], range(rank, len(folders[1]), world))
    val_loader = DataLoader(of_rank, **loading)

    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=weight_decay)
    parallel = DistributedDataParallel(model) if world > 1 else model
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    history = _resume(output / "checkpoint.pth", model, optimizer)
    for epoch in range(len(history), epochs):
        torch.manual_seed(seed + epoch * world + rank)  # same crops after an interruption
        sampler.set_epoch(epoch)
        now = learning_rate(lr, epoch, epochs)
        for group in optimizer.param_groups:
            group["lr"] = now
        loss = _train_epoch(parallel, loader, optimizer, f"epoch {epoch + 1}/{epochs}")
        top1, top5 = evaluate(model, val_loader)
        history.append({"epoch": epoch + 1, "lr": now, "loss": loss, "top1": top1, "top5": top5})
        if comm.is_main_process():
            print(json.dumps(history[-1]), flush=True)
            _save(output, model, optimizer, history)
        comm.synchronize()
    return history[-1]


def _train_epoch(model, loader, optimizer, name: str) -> float:
    """Train for one pass over `loader`; return the mean loss of this process."""
    model.train()
    device = next(model.parameters()).device
    total = 0.0
    for i, (images, labels) in enumerate(loader):
        loss = F.cross_entropy(
            model(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
        if i % 100 == 99 or i == len(loader) - 1:
            mean = float(total) / (i + 1)
            if not mean < float("inf"):
                raise FloatingPointError(
                    f"{name}: the loss is {mean} after {i + 1} steps; lower lr"
                )
            if comm.is_main_process():
                print(f"{name}, step {i + 1}/{len(loader)}: loss {mean:.4f}", flush=True)
    return mean


@torch.no_grad()
def evaluate(model: Classifier, loader) -> tuple[float, float]:
    """Compute top-1 and top-5 accuracy in % over the loaders of all processes."""
    model.eval()
    if comm.get_world_size() > 1:  # so far, each process has running statistics of its own
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    device = next(model.parameters()).device
    counts = torch.zeros(3, dtype=torch.int64, device=device)  # top-1, top-5, images
    for images, labels in loader:
        logits = model(images.to(device, non_blocking=True))
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = best == labels.to(device)[:, None]
        counts += torch.stack([hits[:, 0].sum(), hits.sum(), torch.tensor(len(labels)).to(device)])
    if comm.get_world_size() > 1:
        dist.all_reduce(counts)
    top1, top5, images = counts.tolist()
    return 100 * top1 / images, 100 * top5 / images


def _resume(file: Path, model, optimizer) -> list[dict]:
    """Load the checkpoint if it exists, and return the lines of metrics.json up to it."""
    if not file.exists():
        return []
    checkpoint = read_content(file)
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        raise ValueError(
            f"{file} is from another network or number of classes: choose another output folder, "
            "or remove it to start over"
        ) from error
    optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint["history"]


def _save(output: Path, model, optimizer, history) -> None:
    """Write checkpoint.pth and metrics.json, each atomically."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    with replacing(output / "checkpoint.pth") as part, open(part, "wb") as stream:
        torch.save(state, stream)
    with replacing(output / "metrics.json") as part:
        part.write_text("".join(f"{json.dumps(line)}\n" for line in history))


def save_backbone(model: Classifier, file) -> None:
    """Write only the weights of the backbone, for MODEL.WEIGHTS: `stem.*`, `res2.*`, ...

    Detectron2's checkpointer matches them to any network by these suffixes of the names.
    """
    weights = {
        name: value.cpu()
        for name, value in model.backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")  # FrozenBN has none
    }
    content = {"model": weights, "__author__": "d2_deformable", "matching_heuristics": True}
    with replacing(file) as part, open(part, "wb") as stream:
        torch.save(content, stream)
