"""YAMLs and KEY VALUE overrides merged into a config, with errors that say what to do."""

import re
from difflib import get_close_matches

import yaml
from detectron2.config import CfgNode

# fvcore's message
TYPE_MISMATCH = re.compile(
    r"Type mismatch \(<class '(.+)'> vs\. <class '(.+)'>\) "
    r"with values \((.*) vs\. (.*)\) for config key: (.+)",
    re.DOTALL,
)


def merge_from_file(cfg: CfgNode, config_file) -> None:
    """Merge a YAML, and the files it builds on, into `cfg`.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or a file that is not YAML.
        FileNotFoundError: the file, or one that it builds on, does not exist.
    """
    # The errors of yacs name the key, but neither the file nor the remedy.
    try:
        cfg.merge_from_file(str(config_file))
    except (KeyError, ValueError, AssertionError) as error:
        if "does not exist" in str(error):
            raise FileNotFoundError(f"{config_file}: there is no such file") from None
        raise ValueError(f"{config_file}, or what it builds on: {_explain(error, cfg)}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{config_file} builds on {error.filename} (_BASE_), and there is no such file"
        ) from error
    except (yaml.YAMLError, AttributeError, TypeError) as error:  # not YAML, or not a mapping
        raise ValueError(
            f"{config_file}, or what it builds on, is no YAML of keys and values: "
            f"{' '.join(str(error).split())}"
        ) from error


def merge_from_list(cfg: CfgNode, overrides) -> None:
    """Set KEY, VALUE, KEY, VALUE, ... in `cfg`.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    try:
        cfg.merge_from_list(list(overrides))
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(f"config override: {_explain(error, cfg)}") from error


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


def _explain(error: Exception, cfg: CfgNode) -> str:
    message = str(error.args[0]) if error.args else str(error)
    if match := re.match(r"Non-existent (?:config )?key: (.+)", message):
        similar = get_close_matches(match[1], _keys(cfg), n=1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        return f"there is no key {match[1]}{hint}"
    if match := TYPE_MISMATCH.fullmatch(message):
        expected, given, before, value, key = match.groups()
        hint = ". Quote a string that looks like a number, e.g. '07'" if expected == "str" else ""
        return f"{key} is {value} ({given}); expected {expected}, such as {before}{hint}"
    return message


def _keys(node: CfgNode, prefix: str = "") -> list[str]:
    """Full names of all keys, including sections."""
    keys = []
    for key, value in node.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys += _keys(value, f"{prefix}{key}.")
    return keys
