"""Detectron2's augmentations of a config, for images of any aspect ratio."""

from detectron2.data import detection_utils
from detectron2.data import transforms as T


class AtLeastOnePixel(T.Augmentation):
    """A `ResizeShortestEdge` that leaves at least one pixel of the shorter side.

    By itself it shrinks 3000 x 4 pixels with a limit of 300 to 300 x 0, which cannot be resized.

    Args:
        resize: Detectron2's augmentation.
    """

    def __init__(self, resize: T.ResizeShortestEdge):
        super().__init__()
        self.resize = resize

    def get_transform(self, image):
        transform = self.resize.get_transform(image)
        if isinstance(transform, T.ResizeTransform):  # none for a size of 0, which means unresized
            transform.new_h = max(1, transform.new_h)
            transform.new_w = max(1, transform.new_w)
        return transform


class RandomCrop(T.RandomCrop):
    """Detectron2's, with at least one pixel on each side: a tenth of 4 pixels would be none."""

    def get_crop_size(self, image_size):
        return tuple(max(1, side) for side in super().get_crop_size(image_size))


def for_any_aspect(augmentations) -> list:
    """The same augmentations; those that resize or crop leave at least one pixel."""
    return [_for_any_aspect(augmentation) for augmentation in augmentations]


def _for_any_aspect(augmentation):
    if isinstance(augmentation, T.ResizeShortestEdge):
        return AtLeastOnePixel(augmentation)
    if type(augmentation) is T.RandomCrop:
        return RandomCrop(augmentation.crop_type, augmentation.crop_size)
    return augmentation


def build_test_augmentations(cfg) -> T.AugmentationList:
    """Augmentations of testing with `cfg`: the resizing of INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST."""
    return T.AugmentationList(
        for_any_aspect(detection_utils.build_augmentation(cfg, is_train=False))
    )
