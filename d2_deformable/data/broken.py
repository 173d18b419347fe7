"""Continue training despite unreadable images."""

import random

from .mapper import BrokenImageError

MAX_IN_A_ROW = 100
KEY = "skipped_images"


class SkipBrokenImages:
    """Replaces a record whose image is broken by another, drawn at random.

    The replacement names the files that it stands for, under "skipped_images", since the mapper of
    a data loader's process cannot count for the training.

    Args:
        mapper: maps a record; raises BrokenImageError.
        records: all records, to draw from.
    """

    def __init__(self, mapper, records):
        self.mapper, self.records = mapper, records

    def __call__(self, record: dict) -> dict:
        """Map a record.

        Raises:
            BrokenImageError: so many images in a row are broken that the data set must be.
        """
        skipped = []
        while True:
            try:
                mapped = self.mapper(record)
            except BrokenImageError as error:
                skipped.append(error.path)
                if len(skipped) == MAX_IN_A_ROW:
                    raise
                record = self.records[random.randrange(len(self.records))]
                continue
            return {**mapped, KEY: skipped} if skipped else mapped
