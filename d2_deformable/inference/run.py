"""Run a network over files and write what it finds to a folder."""

import logging
from itertools import islice

from tqdm import tqdm

from ..utils.pixels import read_image
from .outputs import OutputFolder
from .predictor import Predictor
from .sources import is_video
from .video import VideoReader

logger = logging.getLogger(__name__)


def predict_files(predictor: Predictor, files, folder: OutputFolder, batch: int = 1) -> list[str]:
    """Predict images and videos, show progress, and write the results.

    Files that `folder` has already are left out. A file that cannot be read is reported, and the
    others go on.

    Args:
        files: as of `find_inputs`.
        batch: images per call of the network.

    Returns:
        a line for each file that could not be read.
    """
    files = [file for file in files if str(file) not in folder.done]
    images = [file for file in files if not is_video(file)]
    problems = []

    def report(error):
        problems.append(str(error))
        with tqdm.external_write_mode():
            logger.error("%s", error)

    with tqdm(total=len(images), unit="image", disable=None) as bar:
        for pairs in in_batches(_readable(images, report, bar), batch):
            pixels, names = zip(*pairs)
            for image, found in zip(pixels, predictor(pixels, names), strict=True):
                folder.add(image, found)
            bar.update(len(pairs))
    for file in filter(is_video, files):
        try:
            predict_video(predictor, file, folder, batch)
        except OSError as error:
            report(error)
    return problems


def predict_video(predictor: Predictor, file, folder: OutputFolder, batch: int = 1) -> None:
    """Predict every frame, and write an annotated copy if `folder` has pictures.

    Each frame's record has its number, from 0, and its time in seconds.

    Raises:
        OSError: the video cannot be read.
    """
    video = VideoReader(file)
    number = 0
    with folder.writing_video(file, video.rate) as write:
        frames = tqdm(video, total=video.frames or None, unit="frame", disable=None)
        for some in in_batches(frames, batch):
            times, pixels = zip(*some)
            found = predictor(pixels, [file] * len(pixels))
            for seconds, image, prediction in zip(times, pixels, found, strict=True):
                write(image, prediction)
                folder.append_frame(prediction, number, seconds)
                number += 1
    folder.append({"file": str(file), "frames": number})


def in_batches(items, size: int):
    """Yield tuples of `size` items; the last may be shorter."""
    items = iter(items)
    while some := tuple(islice(items, size)):
        yield some


def _readable(files, report, bar):
    """Yield (pixels, path) of each image that can be read."""
    for file in files:
        try:
            yield read_image(file), file
        except OSError as error:
            report(error)
            bar.update()
