"""PASCAL VOC 2012 with the masks of SBD (Hariharan et al. 2011): 10,582 images (paper sec. 4.1)."""

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..utils.files import replacing
from .checks import read_split
from .masks import read_mask

NUM_IMAGES = 10_582
MASKS = "SegmentationClassAug"
SPLIT = "ImageSets/Segmentation/train_aug.txt"


def prepare_voc_aug(voc: Path, sbd=None, masks=None, expected: int = NUM_IMAGES) -> int:
    """Write `voc`/SegmentationClassAug/*.png and finally `voc`/ImageSets/.../train_aug.txt.

    The images are those of VOC's train and SBD's train and val, without VOC's val. Masks hold class
    indices; those that come from VOC itself also hold 255 along borders. Existing masks are kept,
    so that an interrupted run continues.

    Args:
        voc: folder with JPEGImages, SegmentationClass and ImageSets/Segmentation.
        sbd: SBD's benchmark_RELEASE/dataset, with cls/*.mat, train.txt and val.txt; or
        masks: folder of its masks as PNGs of class indices, as SegmentationClassAug is shared.
        expected: how many images there must be.

    Returns:
        how many masks were written.

    Raises:
        FileNotFoundError: files are missing; the message lists all of them by folder.
        ValueError: the number of images is not `expected`, or a mask holds other values than VOC's
            class indices.
        ImportError: `sbd` is given and scipy, which reads its files, is not installed.
    """
    voc = Path(voc)
    train, val = _stems(voc / "ImageSets/Segmentation")
    if sbd:
        load, folder, suffix = _sbd_reader(), Path(sbd) / "cls", ".mat"
        extra = set.union(*_stems(Path(sbd)))
    else:
        load, folder, suffix = read_mask, Path(masks), ".png"
        extra = {path.stem for path in folder.glob("*.png")}
    stems = sorted((train | extra) - val)
    sources = {stem: folder / f"{stem}{suffix}" for stem in stems}
    sources |= {stem: voc / f"SegmentationClass/{stem}.png" for stem in train - val}
    images = [voc / f"JPEGImages/{stem}.jpg" for stem in stems]
    _require([*images, *sources.values()])
    if len(stems) != expected:
        raise ValueError(
            f"{len(stems)} images instead of {expected}: {len(train)} of VOC's train and "
            f"{len(extra)} of {folder}, without {len(val)} of VOC's val. Is one of them incomplete?"
        )
    written = 0
    (voc / MASKS).mkdir(exist_ok=True)
    for stem, source in tqdm(sources.items(), unit="masks"):
        target = voc / MASKS / f"{stem}.png"
        if not target.exists():
            labels = (read_mask if source.suffix == ".png" else load)(source)
            if labels[labels < 255].max(initial=0) > 20:
                raise ValueError(f"{source}: holds {labels[labels < 255].max()}, no class of VOC")
            with replacing(target) as part:
                Image.fromarray(labels).save(part, format="PNG")
            written += 1
    with replacing(voc / SPLIT) as part:
        part.write_text("".join(f"{stem}\n" for stem in stems))
    return written


def _stems(folder: Path) -> list[set[str]]:
    """Read the images listed in train.txt and val.txt of `folder`."""
    files = [folder / "train.txt", folder / "val.txt"]
    _require(files)
    return [{stem for stem, _ in read_split(file)} for file in files]


def _require(files) -> None:
    """Raise one FileNotFoundError that sums up the missing `files` folder by folder."""
    missing = {}
    for file in files:
        if not file.is_file():
            missing.setdefault(file.parent, []).append(file.name)
    if missing:
        lines = (
            f"{folder}: {len(names)} missing, e.g. {', '.join(sorted(names)[:3])}"
            for folder, names in missing.items()
        )
        raise FileNotFoundError("\n".join(["some files are missing:", *lines]))


def _sbd_reader():
    """Make a function that reads the class indices (H, W) uint8 of a .mat file of SBD."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            "scipy reads SBD's .mat files: pip install scipy, or give the masks as PNGs"
        ) from error

    def read(file: Path) -> np.ndarray:
        content = loadmat(file, squeeze_me=True, struct_as_record=False)
        return np.asarray(content["GTcls"].Segmentation, np.uint8)

    return read
