"""Steps shared by all commands: parse arguments, read config and data sets, write a JSON file.

Detectron2 and torch are imported inside functions, since some commands run without them.
"""

import argparse
import logging
import shlex
import signal
import sys
import warnings

from ..utils.provenance import commit, machine, versions

# Errors that end a command with one line instead of a traceback: the user's input is wrong, a
# package that the command needs is missing, or a training diverged.
USER_ERRORS = (FloatingPointError, ImportError, OSError, ValueError)
LOST_WORKER = "DataLoader worker (pid"  # torch's RuntimeError

logger = logging.getLogger(__name__)


def parser(name: str, doc: str, example: str) -> argparse.ArgumentParser:
    """Make the parser of a command.

    Args:
        name: the command, without "d2-deformable".
        doc: docstring of its module, whose first line describes it.
        example: "example:" and an indented command line.
    """
    return argparse.ArgumentParser(
        prog=f"d2-deformable {name}",
        description=doc.splitlines()[0],
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_arguments(parser) -> None:
    """Add the arguments of one trained network: --config-file, --weights and KEY VALUE ...."""
    parser.add_argument("--config-file", required=True, metavar="YAML")
    parser.add_argument("--weights", required=True, help="its checkpoint, a path or URL")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")


def add_predictor_arguments(parser) -> None:
    """Add the arguments of a `Predictor`: --model, --weights, --device and --opts."""
    from ..inference import DEFAULT_MODEL

    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME|YAML|FOLDER",
        help="name of a config (d2-deformable models), a YAML, or OUTPUT_DIR of a training; "
        "default: the packaged network, which knows drawn shapes only",
    )
    parser.add_argument("--weights", metavar="FILE|URL", help="default: those of the model")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys to change"
    )


def run(main, parser, argv=None) -> None:
    """Call main(args); print one line and exit with status 1 if the user's input is wrong.

    Args:
        argv: default: the arguments of the process; --debug shows the traceback as well.
    """
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    try:
        args = parser.parse_intermixed_args(argv)
    except TypeError:  # Detectron2's own parser takes all that follows as KEY VALUE
        args = parser.parse_args(argv)
    try:
        from detectron2.utils.logger import setup_logger
    except ImportError:  # commands that need it raise this themselves
        pass
    else:
        setup_logger(name="d2_deformable", color=sys.stdout.isatty())
    # On a full disk, a log file would print a traceback for every line.
    logging.raiseExceptions = args.debug
    warnings.filterwarnings("ignore", "torch.meshgrid")  # Detectron2's anchors
    warnings.filterwarnings("ignore", "Image size", Warning)  # of Pillow; our limit is an error
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # TorchScript is deprecated
    try:
        main(args)
    except Exception as error:
        if args.debug or not is_expected(error):
            raise
        sys.exit(f"{parser.prog}: {message_of(error)}")
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted\n")
        sys.exit(128 + signal.SIGINT)


def is_expected(error: BaseException | None) -> bool:
    """Return True if one line says enough of an error."""
    return isinstance(error, USER_ERRORS) or str(error).startswith(LOST_WORKER)


def message_of(error: Exception) -> str:
    """Return the message; of an error in a data loader's process, without its traceback."""
    text = str(error)
    if text.startswith(LOST_WORKER):
        return (
            f"{text.rstrip('. ')}. It loaded images. If memory ran out, use fewer of them "
            "(DATALOADER.NUM_WORKERS); go on with --resume"
        )
    if "\nOriginal Traceback" not in text:
        return text
    return text.splitlines()[-1].partition(": ")[2]


def config_of(config_file, overrides=(), needs_data: bool = True):
    """Read the config of a YAML with KEY, VALUE, ... on top, and register its data sets.

    Without a usable GPU, MODEL.DEVICE becomes the CPU.

    Args:
        needs_data: if False, data sets that do not exist are left out.

    Raises:
        FileNotFoundError: the YAML, or a file of a data set, does not exist.
        ValueError: an unknown key in the file, or among the overrides.
    """
    from ..config import read_config
    from ..data import register_custom_datasets
    from ..engine import fall_back_to_cpu

    cfg = read_config(config_file, overrides)
    fall_back_to_cpu(cfg)
    try:
        register_custom_datasets(cfg)
    except OSError as error:
        if needs_data:
            raise
        logger.info("Continuing without the config's data sets: %s", error)
    return cfg


def write_json(file, result: dict) -> None:
    """Write `result` with the command, machine, versions and commit that it was made with."""
    from ..utils.files import replace_json

    provenance = {
        "command": shlex.join(["d2-deformable", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }
    replace_json(file, provenance | result, indent=1, allow_nan=False)
    print(f"wrote {file}")
