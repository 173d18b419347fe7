"""Compare the sizes of images in annotations and in files."""

from ..utils.pixels import image_size


def check_sizes(dicts: list[dict], source: str) -> None:
    """Compare sizes by the files' headers; a file that cannot be read is left to training.

    Args:
        dicts: images in Detectron2's standard format.
        source: path of the annotations, for messages.

    Raises:
        ValueError: an image has another size than in its annotation.
    """
    for record in dicts:
        try:
            size = image_size(record["file_name"])
        except ValueError:
            continue
        if difference := describe_difference(record, size):
            raise ValueError(
                f"{difference}: its size differs from that in {source}. Correct the annotation; "
                "`d2-deformable data check` lists all such images"
            )


def describe_difference(record: dict, size: tuple[int, int]) -> str | None:
    """Name an image whose (width, height) is not that of its record; None if they are equal."""
    width, height = size
    noted = record.get("width", width), record.get("height", height)
    if noted == size:
        return None
    turned = ", turned by its EXIF orientation" if noted == (height, width) else ""
    return (
        f"{record['file_name']} ({width} x {height}{turned}; annotated as {noted[0]} x {noted[1]})"
    )
