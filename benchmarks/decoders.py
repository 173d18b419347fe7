"""CPU time of decoding JPEG photographs by Pillow, torchvision and OpenCV, and differing pixels.

    python -m benchmarks.decoders FOLDER --json benchmarks/results/decoders.json

Each decoder turns the bytes of a file into BGR (H, W, 3) uint8, as Detectron2's networks read them,
on one thread, in rotated order. "Detectron2" is Pillow and its `convert_PIL_to_numpy`. "ours" is
`read_image`, which also uses Pillow, turns images by their EXIF orientation, scales 16 bits and
converts CMYK. Files are grouped by their size in pixels; some are also enlarged to the size of a
camera's.
"""

import argparse
import io
import random
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from d2_deformable.utils.pixels import read_image

from .protocol import digits, interleave, quartiles
from .results import Results, settings
from .table import terminal

LIMITS = (0.3, 1, 3, 1000)  # megapixels
CAMERA = (4000, 3000)


def detectron2(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.ascontiguousarray(convert_PIL_to_numpy(image, "BGR"))


def by_torchvision(content: bytes) -> np.ndarray:
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    image = torchvision.io.decode_jpeg(encoded, mode=torchvision.io.ImageReadMode.RGB)
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy()[:, :, ::-1])


def opencv(content: bytes) -> np.ndarray:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    encoded = np.frombuffer(content, np.uint8)
    return cv2.imdecode(encoded, flags)


DECODERS = {
    "Detectron2": detectron2,
    "ours": lambda content: read_image(io.BytesIO(content), "BGR"),
    "torchvision": by_torchvision,
    "OpenCV": opencv,
}


def seconds(decode, content: bytes) -> float:
    """CPU time, which other processes hardly change."""
    start = time.process_time()
    decode(content)
    return time.process_time() - start


def measure(images: list[bytes], rounds: int) -> dict:
    """Compare the decoders on the contents of files, each as often as there are rounds."""
    ratios, differences = {name: [] for name in DECODERS}, {}
    times, pixels = [], []
    for content in images:
        expected = detectron2(content).astype(int)
        for name, decode in DECODERS.items():
            if name == "ours":
                continue  # it turns the image
            difference = np.abs(decode(content) - expected)
            found = differences.setdefault(name, [0, 0.0])
            found[0] = max(found[0], int(difference.max()))
            found[1] += float((difference > 0).mean()) / len(images)
        runs = {
            name: lambda content, decode=decode: seconds(decode, content)
            for name, decode in DECODERS.items()
        }
        measured = interleave(runs, lambda content=content: content, rounds)
        for name in DECODERS:
            ratios[name] += [measured.ratio(name, "Detectron2")[1]]
        times.append(quartiles(measured.ms["Detectron2"])[1])
        pixels.append(expected.shape[0] * expected.shape[1])
    cells = {"files": len(images), "megapixels": digits(np.mean(pixels) / 1e6)}
    cells["ms, Detectron2"] = digits(np.mean(times))
    for name in list(DECODERS)[1:]:
        low, middle, high = quartiles(ratios[name])
        cells[f"{name} / Detectron2"] = f"{middle:.2f} ({low:.2f}-{high:.2f})"
    for name in list(DECODERS)[2:]:
        most, share = differences[name]
        cells[f"largest difference, {name}"] = f"{most} ({share:.1%} of values differ)"
    return cells


def enlarged(file: Path) -> bytes:
    stream = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").resize(CAMERA).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoders", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="of JPEG files, with its subfolders")
    parser.add_argument("--files", type=int, default=20, help="of each size (20)")
    parser.add_argument("--rounds", type=int, default=5, help="per file (5)")
    parser.add_argument("--json", type=Path, help="save rows here")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found = [p for p in sorted(args.folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
    if not found:
        parser.error(f"{args.folder}: holds no .jpg or .jpeg file")
    groups = {limit: [] for limit in LIMITS}
    random.Random(0).shuffle(found)
    for file in found:
        with Image.open(file) as image:
            size = image.width * image.height / 1e6
        group = groups[next(limit for limit in LIMITS if size <= limit)]
        if len(group) < args.files:
            group.append(file)
    results = Results(args.json, settings(parser.prog, argv))
    for limit, files in groups.items():
        if files:
            key = (f"up to {limit:g} megapixels" if limit < LIMITS[-1] else "larger", "", "")
            contents = [file.read_bytes() for file in files]
            results.put(key, {"cells": measure(contents, args.rounds)})
    key = (f"enlarged to {CAMERA[0]} x {CAMERA[1]}", "", "")
    contents = list(map(enlarged, found[: max(1, args.files // 4)]))
    results.put(key, {"cells": measure(contents, args.rounds)})
    print(terminal(results.data))


if __name__ == "__main__":
    main()
