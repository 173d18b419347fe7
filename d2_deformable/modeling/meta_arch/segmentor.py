"""Detectron2's SemanticSegmentor, which accepts and refuses the same inputs as the detectors."""

from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor

from .._checks import check_images


@META_ARCH_REGISTRY.register()
class DeformSegmentor(SemanticSegmentor):
    """`SemanticSegmentor` under the name that older YAMLs use; checkpoints fit both."""

    def forward(self, batched_inputs):
        """Same as Detectron2's, but "height" and "width" of an input may be left out, as for its
        detectors.

        Raises:
            ValueError: no image is given.
        """
        check_images(self, batched_inputs)
        return super().forward([_with_size(x) for x in batched_inputs])


def _with_size(x: dict) -> dict:
    height, width = x["image"].shape[1:]
    return {"height": height, "width": width} | x
