"""Detectron2's SemanticSegmentor, which takes and refuses inputs as its detectors do."""

from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor

from .._checks import check_images


@META_ARCH_REGISTRY.register()
class DeformSegmentor(SemanticSegmentor):
    """`SemanticSegmentor` under the name that older YAMLs have; checkpoints fit both."""

    def forward(self, batched_inputs):
        """As Detectron2's; "height" and "width" of an input may be left out, as in its detectors.

        Raises:
            ValueError: no image.
        """
        check_images(self, batched_inputs)
        return super().forward([_with_size(x) for x in batched_inputs])


def _with_size(x: dict) -> dict:
    height, width = x["image"].shape[1:]
    return {"height": height, "width": width} | x
