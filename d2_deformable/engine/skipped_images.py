"""Count the broken images that a training has skipped."""

import logging
from collections import Counter

from detectron2.engine import HookBase

from ..data.broken import KEY

NAMED = 10  # files that the summary names

logger = logging.getLogger(__name__)


class SkippedImages(HookBase):
    """Counts the images that `SkipBrokenImages` has left out; the scalar is "skipped_images".

    Each file is named once, and all are summed up at the end. Under DDP these are the images of the
    main process. List it before the writers.
    """

    def __init__(self):
        self.times = Counter()

    def after_step(self):
        for record in self.trainer.last_step.batch:
            for file in record.get(KEY, ()):
                if file not in self.times:
                    logger.warning("Skipping %s, which cannot be read", file)
                self.times[file] += 1
        total = self.times.total()
        self.trainer.storage.put_scalar("skipped_images", total, smoothing_hint=False)

    def after_train(self):
        if self.times:
            more = len(self.times) - NAMED
            logger.warning(
                "Skipped %d broken images, %d times in all: %s%s",
                len(self.times),
                self.times.total(),
                ", ".join(sorted(self.times)[:NAMED]),
                f" and {more} more" if more > 0 else "",
            )
