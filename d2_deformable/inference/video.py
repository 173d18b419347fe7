"""Read and write videos, frame by frame."""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from ..utils.files import replacing


class VideoReader:
    """A video file.

    frames: number of frames according to the file, which may be wrong; 0 if unknown.
    rate: frames per second.

    Raises:
        OSError: the file is missing, damaged, or of an unknown format.
    """

    def __init__(self, file):
        self.file = file
        self._capture = cv2.VideoCapture(str(file))
        if not self._capture.isOpened():
            raise OSError(f"{file}: this video cannot be read")
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or 25.0

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield (seconds since the start, RGB (H, W, 3) uint8) of each frame."""
        read = 0
        try:
            while True:
                there, frame = self._capture.read()
                if not there:
                    break
                read += 1
                seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000  # of the frame just read
                yield round(seconds, 4), np.ascontiguousarray(frame[:, :, ::-1])
        finally:
            self._capture.release()
        if not read:
            raise OSError(f"{self.file}: this video has no readable frame")


@contextmanager
def writing_video(file, rate: float):
    """Yield a function that appends a frame, RGB (H, W, 3) uint8, to an MPEG-4 file.

    All frames have the size of the first. The file appears when the block ends without an error.

    Args:
        file: with the suffix .mp4.
        rate: frames per second.
    """
    with replacing(file) as part:
        writer = cv2.VideoWriter()

        def write(frame: np.ndarray) -> None:
            height, width = frame.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            if not writer.isOpened() and not writer.open(str(part), codec, rate, (width, height)):
                raise OSError(f"{file}: OpenCV cannot write MPEG-4 here")
            writer.write(np.ascontiguousarray(frame[:, :, ::-1]))

        try:
            yield write
        finally:
            writer.release()
