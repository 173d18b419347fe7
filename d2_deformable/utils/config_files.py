"""YAMLs and KEY VALUE overrides merged into a config, with errors that say what to do."""

import io
import re
from difflib import get_close_matches

import yaml
from detectron2.config import CfgNode

from ..compat import require_private
from .text import one_line

require_private(CfgNode, "_open_cfg")

# Limits of a config; those of Detectron2 and of this package are far below.
MAX_FILES, MAX_CHARACTERS, MAX_VALUES, MAX_DEPTH = 100, 1_000_000, 100_000, 50
TEXT, INT = "tag:yaml.org,2002:str", "tag:yaml.org,2002:int"

# fvcore's message
TYPE_MISMATCH = re.compile(
    r"Type mismatch \(<class '(.+)'> vs\. <class '(.+)'>\) "
    r"with values \((.*) vs\. (.*)\) for config key: (.+)",
    re.DOTALL,
)


def merge_from_file(cfg: CfgNode, config_file) -> None:
    """Merge a YAML, and the files it builds on, into `cfg`.

    Unlike Detectron2's method, it runs no code that a YAML names (`!!python/...`).

    Raises:
        ValueError: an unknown key, a value of the wrong type, or a file that is not YAML, names
            code, or becomes huge through aliases or `_BASE_`.
        FileNotFoundError: the file, or one that it builds on, does not exist.
    """
    # The errors of yacs name the key, but neither the file nor the remedy.
    try:
        _screen(str(config_file))
        cfg.merge_from_file(str(config_file), allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        mark, code = error.problem_mark, "python/" in error.problem
        hint = ". A YAML must not run code: write the value out" if code else ""
        raise ValueError(f"{mark.name}, line {mark.line + 1}: {error.problem}{hint}") from error
    except (KeyError, ValueError, AssertionError) as error:
        reason = _explain(error, cfg)
        where = (
            "" if reason.startswith(str(config_file)) else f"{config_file}, or what it builds on: "
        )
        raise ValueError(where + reason) from error
    except (MemoryError, RecursionError):  # a text such as "----1" is read as Python by yacs
        raise ValueError(f"{config_file}, or what it builds on, is nested too deeply") from None
    except (FileNotFoundError, IsADirectoryError) as error:
        if error.filename == str(config_file):
            raise FileNotFoundError(f"{config_file}: there is no such file") from None
        raise FileNotFoundError(
            f"{config_file} builds on {error.filename} (_BASE_), and there is no such file"
        ) from error
    except (yaml.YAMLError, AttributeError, TypeError) as error:  # not YAML, or not a mapping
        raise ValueError(
            f"{config_file}, or what it builds on, is no YAML of keys and values: {one_line(error)}"
        ) from error
    except OSError as error:  # of a URL, or a name that cannot be
        raise OSError(
            f"{config_file}, or what it builds on, cannot be read: {one_line(error)}"
        ) from error


def merge_from_list(cfg: CfgNode, overrides) -> None:
    """Set KEY, VALUE, KEY, VALUE, ... in `cfg`.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    overrides = list(overrides)
    if len(overrides) % 2:
        last = one_line(overrides[-1])
        raise ValueError(
            f"config override: {last} has no value, or a key before it has none; expected pairs "
            "of KEY VALUE. Options such as --resume come before them"
        )
    try:
        cfg.merge_from_list(overrides)
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(f"config override: {_explain(error, cfg)}") from error
    except (MemoryError, RecursionError):
        raise ValueError("config override: a value is nested too deeply") from None


def difference(cfg: dict, defaults: dict, keep=(), prefix: str = "") -> dict:
    """The keys and values of `cfg` that `defaults` lacks or has otherwise.

    Args:
        cfg, defaults: CfgNodes or nested dicts.
        keep: full names of keys to include in any case.
        prefix: of the full names of these keys.

    Returns:
        nested dicts of YAML's types. Merged into `defaults`, they give `cfg` again.
    """
    found = {}
    for key, value in cfg.items():
        other, name = defaults.get(key), prefix + key
        if isinstance(value, dict) and isinstance(other, dict):
            if inner := difference(value, other, keep, f"{name}."):
                found[key] = inner
        elif key not in defaults or value != other or name in keep:
            found[key] = yaml.safe_load(CfgNode({key: value}).dump())[key]
    return found


def _screen(config_file: str) -> None:
    """Check that a YAML and the files it builds on are of ordinary size.

    Raises:
        ValueError: names the file and what is too large.
    """
    opened = []

    class Screened(CfgNode):
        @classmethod
        def _open_cfg(cls, filename):
            opened.append(filename)
            if len(opened) > MAX_FILES:
                raise ValueError(
                    f"it builds on more than {MAX_FILES} files, {filename} among them (_BASE_); "
                    "does one build on itself?"
                )
            with super()._open_cfg(filename) as file:
                text = file.read(MAX_CHARACTERS + 1)
            _check_top(check_size(text, filename), filename)
            return _Named(text, filename)

    Screened.load_yaml_with_base(config_file, allow_unsafe=False)


def check_size(text: str, name: str) -> yaml.Node | None:
    """Check that a YAML is of ordinary size, aliases expanded, and return its root.

    Raises:
        ValueError: it is not.
        yaml.YAMLError, RecursionError: it is no YAML, or nested too deeply.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{name} has more than {MAX_CHARACTERS} characters")
    root = yaml.compose(text, yaml.SafeLoader)
    values, depth = _measure(root, {})
    if values > MAX_VALUES:
        raise ValueError(
            f"{name} has {values} values through its aliases (*); expected at most {MAX_VALUES}"
        )
    if depth > MAX_DEPTH:
        raise ValueError(f"{name} is nested {depth} deep; expected at most {MAX_DEPTH}")
    return root


def _check_top(root: yaml.Node | None, name: str) -> None:
    """Check that a YAML holds keys, and the two keys that Detectron2 reads before it merges."""
    if root is None or (isinstance(root, yaml.ScalarNode) and root.value in ("", "null", "~")):
        raise ValueError(f"{name} is empty; expected keys and values, such as SEED: 1")
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{name} holds no keys; expected keys and values, such as SEED: 1")
    for key, value in root.value:
        bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if key.value == "_BASE_" and not all(base.tag == TEXT and base.value for base in bases):
            raise ValueError(f"{name}: _BASE_ is no file name; expected a path, or a list of paths")
        if key.value == "VERSION" and (value.tag != INT or value.value.startswith("-")):
            raise ValueError(f"{name}: VERSION is {one_line(value.value)}; expected 2")


class _Named(io.StringIO):
    """A text whose name errors of YAML mention."""

    def __init__(self, text: str, name: str):
        super().__init__(text)
        self.name = name


def _measure(node: yaml.Node | None, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Number and depth of values below a node, aliases expanded; `known` are those of others."""
    if not isinstance(node, yaml.CollectionNode):
        return 1, 0
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1, 0  # if it contains itself
        pairs = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if pairs else node.value
        measured = [_measure(child, known) for child in children]
        depth = 1 + max((depth for _, depth in measured), default=0)
        known[id(node)] = 1 + sum(values for values, _ in measured), depth
    return known[id(node)]


def _explain(error: Exception, cfg: CfgNode) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not {error.encoding} text"
    message = str(error.args[0]) if error.args else str(error)
    if match := re.match(r"Non-existent (?:config )?key: (.+)", message):
        similar = get_close_matches(match[1], _keys(cfg), n=1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        return f"there is no key {match[1]}{hint}"
    if match := TYPE_MISMATCH.fullmatch(message):
        expected, given, before, value, key = match.groups()
        value = one_line(value, 80)
        if expected.endswith("CfgNode"):
            return f"{key} is {value} ({given}); expected keys and values, as it is a section"
        hint = ". Quote a string that looks like a number, e.g. '07'" if expected == "str" else ""
        return f"{key} is {value} ({given}); expected {expected}, such as {before}{hint}"
    return one_line(message, 500)


def _keys(node: CfgNode, prefix: str = "") -> list[str]:
    """Full names of all keys, including sections."""
    keys = []
    for key, value in node.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys += _keys(value, f"{prefix}{key}.")
    return keys
