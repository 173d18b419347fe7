"""Checks shared by several modules."""


def check_config(cfg) -> None:
    """Refuse a cfg without this package's keys, e.g. from a training script that did not add them.

    Raises:
        ValueError: `add_deformable_config` was not called on `cfg`.
    """
    if "DEFORM_NUM_LAYERS" not in cfg.MODEL.RESNETS:
        raise ValueError(
            "cfg has none of d2_deformable's keys: call d2_deformable.add_deformable_config(cfg) "
            "after get_cfg() and before the YAML is merged"
        )


def check_images(model, batched_inputs) -> None:
    """Refuse an empty list of images, which would fail far inside the network.

    Raises:
        ValueError: there is no image for `model`.
    """
    if not len(batched_inputs):
        raise ValueError(
            f"{type(model).__name__} got no image; expected a list of dicts as Detectron2's data "
            'loaders give them, at least [{"image": (C, H, W) tensor}]'
        )
