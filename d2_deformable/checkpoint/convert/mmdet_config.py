"""Read the config in the metadata of an mmdetection checkpoint, without running it.

It is Python source with assignments such as `model = dict(type='FasterRCNN', backbone=dict(...))`.
Only literals and calls of `dict` are read; everything else is ignored.
"""

import ast
from collections.abc import Mapping


def read_config(metadata: Mapping[str, object]) -> dict:
    """Read the part of the config in a checkpoint's "meta" that the converter needs.

    Args:
        metadata: may hold the config as "cfg" (mmdetection 3.x) or "config" (2.x).

    Returns:
        the "model" of the config, with "test_cfg" from where the version keeps it, and "pixels":
        {"mean": [...], "std": [...], "rgb": bool}, in the input's channel order; {} if there is no
        readable config.
    """
    text = metadata.get("cfg") or metadata.get("config")
    try:
        statements = ast.parse(text).body if isinstance(text, str) else []
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the text may be anything
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
    """Look up "a.b.c" in nested dicts; `default` if it is missing or None."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return default if config is None else config


def _value(node):
    """Evaluate a literal, or dict(...) of literals; None for anything else."""
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
