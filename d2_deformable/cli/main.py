"""The command line: d2-deformable COMMAND ..., also as python -m d2_deformable.

Each command is a module of this package with `parser()` and `main(args)`. Only the module of the
chosen command is imported.
"""

import sys
from difflib import get_close_matches
from importlib import import_module

from .. import __version__

# {command: (module, one line of help)}, in the order of the help.
COMMANDS = {
    "train": ("train", "train a network from its YAML"),
    "eval": ("evaluate", "evaluate a checkpoint on the test sets of a config"),
    "new": ("new", "write a YAML that trains a network on your own labelled images"),
    "data check": ("data_check", "check a data set before training, with counts and pictures"),
}
USAGE = "usage: d2-deformable COMMAND ...\n       d2-deformable COMMAND --help\n"


def main(argv=None) -> None:
    """Run the command that the arguments name.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Raises:
        SystemExit: with status 1 for wrong input, 2 for wrong usage.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return
    if argv[0] == "--version":
        print(__version__)
        return
    words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    name = " ".join(argv[:words])
    if name not in COMMANDS:
        sys.stderr.write(f"{USAGE}d2-deformable: {unknown(argv)}\n")
        sys.exit(2)
    module = import_module(f".{COMMANDS[name][0]}", __package__)
    from .command import run

    run(module.main, module.parser(), argv[words:])


def overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{help}" for name, (_, help) in COMMANDS.items()]
    return "\n".join(
        [f"{USAGE}", "Deformable Convolutional Networks for Detectron2.", "", "commands:", *lines]
    )


def unknown(argv) -> str:
    """Describe an unknown command, with the nearest known ones."""
    parts = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    near = parts or get_close_matches(argv[0], COMMANDS)
    hint = f"did you mean {' or '.join(near)}?" if near else "d2-deformable --help lists all"
    return f"no such command: {' '.join(argv[:2] if parts else argv[:1])}; {hint}"
