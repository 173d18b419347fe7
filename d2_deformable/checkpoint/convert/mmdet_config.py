"""The config in the metadata of an mmdetection checkpoint, read without running it.

It is a Python text of assignments, `model = dict(type='FasterRCNN', backbone=dict(...))`: only
literals and calls of `dict` are read, all else is passed over.
"""

import ast
from collections.abc import Mapping


def read_config(metadata: Mapping[str, object]) -> dict:
    """What a converter needs of the config in a checkpoint's "meta", else {}.

    Args:
        metadata: with the text as "cfg" (mmdetection 3.x) or "config" (2.x), or without.

    Returns:
        the "model" of the config, with "test_cfg" from where the version keeps it, and "pixels":
        {"mean": [...], "std": [...], "rgb": bool}, of the input's channel order.
    """
    text = metadata.get("cfg") or metadata.get("config")
    try:
        statements = ast.parse(text).body if isinstance(text, str) else []
    except SyntaxError:
        return {}
    values = {
        statement.targets[0].id: _value(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    model = values.get("model")
    if not isinstance(model, dict):
        return {}
    normalised = model.get("data_preprocessor") or values.get("img_norm_cfg") or {}
    pixels = {key: normalised[key] for key in ("mean", "std") if key in normalised}
    for key in ("bgr_to_rgb", "to_rgb"):
        if key in normalised:
            pixels["rgb"] = normalised[key]
    return {"test_cfg": values.get("test_cfg")} | model | {"pixels": pixels}


def lookup(config, path: str, default):
    """The value at "a.b.c" of nested dicts; `default` where there is none, or None."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return default if config is None else config


def _value(node):
    """A literal, or dict(...) of such; None for anything else."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict":
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [_value(key) for key in node.keys]
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
