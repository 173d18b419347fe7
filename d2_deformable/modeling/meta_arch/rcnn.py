"""Detectron2's GeneralizedRCNN with a clear error for an empty list of images."""

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

from .._checks import check_images


@META_ARCH_REGISTRY.register()
class DeformRCNN(GeneralizedRCNN):
    """`GeneralizedRCNN` under the name that older YAMLs use; checkpoints fit both."""

    def preprocess_image(self, batched_inputs):
        """Same as Detectron2's.

        Raises:
            ValueError: no image is given.
        """
        check_images(self, batched_inputs)
        return super().preprocess_image(batched_inputs)
