"""The command line: d2-deformable COMMAND ..., also as python -m d2_deformable.

Each command is a module of this package with `parser()` and `main(args)`. Only the module of the
chosen command is imported.
"""

import shlex
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from .. import __version__
from .command import run

# {command: (module, one line of help)}, in the order of the help.
COMMANDS = {
    "predict": ("predict", "detect objects in images, folders and videos"),
    "app": ("app", "serve an interactive viewer of detections and sampling points"),
    "new": ("new", "write a YAML that trains a network on your own labelled images"),
    "train": ("train", "train a network from its YAML"),
    "train imagenet": ("train_imagenet", "train a backbone on ImageNet"),
    "eval": ("evaluate", "evaluate a checkpoint on the test sets of a config"),
    "report": ("report", "write an HTML report of a finished training"),
    "demo": ("demo", "train a small network on drawn shapes and write its report"),
    "analyze dilation": ("analyze_dilation", "effective dilation by size of object (table 2)"),
    "analyze sampling": ("analyze_sampling", "draw where a network samples (figures 5 and 6)"),
    "analyze complexity": ("analyze_complexity", "parameters, FLOPs and time (table 4)"),
    "proposals": ("proposals", "write the proposals of an RPN to files"),
    "convert": ("convert", "convert a checkpoint of another project"),
    "export": ("export", "export a network as ONNX, TorchScript or torch.export program"),
    "export weights": ("export_weights", "export the weights of a training in half precision"),
    "publish": ("publish", "add a finished training to a model zoo"),
    "data check": ("data_check", "check a data set before training, with counts and pictures"),
    "data prepare-voc-aug": ("data_prepare_voc_aug", "make the masks of VOC 2012 with SBD"),
    "models": ("models", "list the networks of the model zoo"),
    "models show": ("models_show", "print the config of a network"),
    "doctor": ("doctor", "check this installation"),
    "install-detectron2": ("install_detectron2", "install Detectron2"),
}
WITHOUT_DETECTRON2 = {"doctor", "install-detectron2"}
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
    try:
        if name not in WITHOUT_DETECTRON2:
            from .. import needs_detectron2  # noqa: F401
        module = import_module(f".{COMMANDS[name][0]}", __package__)
    except (ImportError, OSError, RuntimeError) as error:  # as libraries that do not fit raise
        if "--debug" in argv:
            raise
        sys.exit(f"d2-deformable {name}: {error}; run `d2-deformable doctor` for details")
    run(module.main, module.parser(), argv[words:])


def moved(name: str) -> None:
    """Print and run the command that replaces a script of tools/, with the script's arguments."""
    script = Path(sys.argv[0])
    sys.argv = ["d2-deformable", *name.split(), *sys.argv[1:]]
    sys.stderr.write(f"{script.parent.name}/{script.name} is now: {shlex.join(sys.argv)}\n")
    main()


def overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [f"{USAGE}", "Deformable Convolutional Networks for Detectron2.", "", "commands:", *lines]
    )


def unknown(argv) -> str:
    """Describe an unknown command, with the nearest known ones."""
    parts = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    near = parts or get_close_matches(argv[0], COMMANDS)
    hint = f"did you mean {' or '.join(near)}?" if near else "d2-deformable --help lists all"
    return f"no such command: {' '.join(argv[:2] if parts else argv[:1])}; {hint}"
