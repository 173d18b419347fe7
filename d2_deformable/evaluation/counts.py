"""The numbers that stand beside an average precision or recall."""

import logging

from ..utils.text import count

COUNTS = ("images", "detections", "objects", "ignored")
logger = logging.getLogger(__name__)


def report_counts(
    what: str, *, images: int, of_images: int, detections: int, objects: int, ignored: int
) -> dict[str, int]:
    """Log what an evaluation counted, with a warning where its result does not mean much.

    Args:
        what: the start of the message.
        images: images for which the model was run.
        of_images: images of the data set.
        detections: detections (or proposals) in these images.
        objects: objects that count.
        ignored: objects that are neither found nor missed, e.g. crowds or `difficult` ones.

    Returns:
        {"images", "detections", "objects", "ignored"}, to be added to the result.
    """
    counted = (count(images, "image"), count(detections, "detection"), count(objects, "object"))
    logger.info("%s: %s, %s and %s, %s ignored", what, *counted, f"{ignored:,}")
    if images < of_images:
        message = "%s: the model was run on %s of %s, so this is not the result on the data set"
        logger.warning(message, what, f"{images:,}", count(of_images, "image"))
    if ignored and not objects:
        message = "%s: every object is ignored (crowd or difficult), so there is nothing to find"
        logger.warning(message, what)
    return {"images": images, "detections": detections, "objects": objects, "ignored": ignored}
