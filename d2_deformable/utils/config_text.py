"""Configs as YAML text with comments."""

import textwrap

import yaml

WIDTH = 100


def to_yaml(tree: dict, comments: dict[str, str]) -> str:
    """Write nested dicts of values as YAML.

    Args:
        comments: {full name of a key: text to write above it}.
    """
    return "\n".join(_lines(tree, comments, "")) + "\n"


def _lines(tree: dict, comments: dict[str, str], prefix: str):
    indent = "  " * prefix.count(".")
    for key, value in tree.items():
        if comment := comments.get(prefix + key):
            # To YAML, more characters end a line, and with it the comment, than to `textwrap`.
            comment = " ".join(comment.split())
            yield from (f"{indent}# {line}" for line in textwrap.wrap(comment, WIDTH - 8))
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, comments, f"{prefix}{key}.")
        else:
            # In a list, YAML writes text that needs no more lines than this one.
            text = yaml.safe_dump(
                [list(value) if isinstance(value, tuple) else value],
                default_flow_style=True,
                width=WIDTH - len(indent) - len(key) - 8,
                allow_unicode=True,
            )
            first, *others = text.strip()[1:-1].splitlines()
            yield f"{indent}{key}: {first}"
            yield from (f"{indent}  {line.strip()}" for line in others)
