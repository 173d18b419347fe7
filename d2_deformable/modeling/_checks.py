"""The check that whatever is built from cfg shares."""


def check_config(cfg) -> None:
    """Refuse a cfg without this package's keys, e.g. one of a training script that forgot them.

    Raises:
        ValueError: `add_deformable_config` was not called on `cfg`.
    """
    if "DEFORM_NUM_LAYERS" not in cfg.MODEL.RESNETS:
        raise ValueError(
            "cfg has none of d2_deformable's keys: call d2_deformable.add_deformable_config(cfg) "
            "after get_cfg() and before the YAML is merged"
        )
