"""Steps shared by all commands: parse arguments, read config and data sets, write a JSON file."""

import logging
import shlex
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..config import read_config
from ..data import register_custom_datasets
from ..engine import fall_back_to_cpu
from ..utils.files import replace_json
from ..utils.provenance import commit, machine, versions

# Errors that end a command with one line instead of a traceback: the user's input is wrong, or a
# package that the command needs is missing.
USER_ERRORS = (ImportError, OSError, ValueError)

logger = logging.getLogger(__name__)


def add_model_arguments(parser) -> None:
    """Add the arguments of one trained network: --config-file, --weights and KEY VALUE ...."""
    parser.add_argument("--config-file", required=True, metavar="YAML")
    parser.add_argument("--weights", required=True, help="its checkpoint, a path or URL")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")


def run(main, parser, argv=None) -> None:
    """Call main(args); print one line and exit if the user's input is wrong."""
    args = parser.parse_intermixed_args(argv)
    setup_logger(name="d2_deformable")
    try:
        main(args)
    except USER_ERRORS as error:
        sys.exit(f"{parser.prog}: {error}")


def config_of(config_file, overrides=(), needs_data: bool = True):
    """Read the config of a YAML with KEY, VALUE, ... on top, and register its data sets.

    Without a usable GPU, MODEL.DEVICE becomes the CPU.

    Args:
        needs_data: if False, data sets that do not exist are left out.

    Raises:
        FileNotFoundError: the YAML, or a file of a data set, does not exist.
        ValueError: an unknown key in the file, or among the overrides.
    """
    cfg = read_config(config_file, overrides)
    fall_back_to_cpu(cfg)
    try:
        register_custom_datasets(cfg)
    except OSError as error:
        if needs_data:
            raise
        logger.info("Continuing without the config's data sets: %s", error)
    return cfg


def file_records(files) -> list[dict]:
    """Make records of Detectron2's format from image files.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: `files` is empty.
    """
    if not files:
        raise ValueError("no image given")
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such image (KEY VALUE go before --images)")
    return [{"file_name": str(file)} for file in files]


def write_json(file, result: dict) -> None:
    """Write `result` with the command, machine, versions and commit that it was made with."""
    provenance = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }
    replace_json(file, provenance | result, indent=1, allow_nan=False)
    print(f"wrote {file}")
