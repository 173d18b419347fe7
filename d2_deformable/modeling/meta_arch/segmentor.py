"""Detectron2's SemanticSegmentor, which tells what is wrong with an empty list of images."""

from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor

from .._checks import check_images


@META_ARCH_REGISTRY.register()
class DeformSegmentor(SemanticSegmentor):
    """`SemanticSegmentor` for DeepLab; parameters have the names that they have there."""

    def forward(self, batched_inputs):
        """As Detectron2's.

        Raises:
            ValueError: no image.
        """
        check_images(self, batched_inputs)
        return super().forward(batched_inputs)
