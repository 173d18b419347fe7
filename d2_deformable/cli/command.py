"""What every command does first and last: arguments, config and data sets in, a JSON file out."""

import json
import logging
import shlex
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..config import read_config
from ..data import register_custom_datasets
from ..engine import fall_back_to_cpu
from ..utils.provenance import commit, machine, versions

# What a command ends with in one line, without a traceback: the user's input is wrong, or a package
# that it asks for is missing.
USER_ERRORS = (ImportError, OSError, ValueError)

logger = logging.getLogger(__name__)


def add_model_arguments(parser) -> None:
    """--config-file, --weights, --output and KEY VALUE ... of one trained network."""
    parser.add_argument("--config-file", required=True, metavar="YAML")
    parser.add_argument("--weights", required=True, help="its checkpoint, a path or URL")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")


def run(main, parser, argv=None) -> None:
    """Call main(args) and end the process in one line where the user's input is wrong."""
    args = parser.parse_intermixed_args(argv)
    setup_logger(name="d2_deformable")
    try:
        main(args)
    except USER_ERRORS as error:
        sys.exit(f"{parser.prog}: {error}")


def config_of(config_file, overrides=(), needs_data: bool = True):
    """The settings of a YAML, KEY, VALUE, ... on top, with its data sets registered.

    Without a usable GPU, MODEL.DEVICE becomes the CPU.

    Args:
        needs_data: else data sets that are not there are left out.

    Raises:
        FileNotFoundError: no such file, or a data set's.
        ValueError: an unknown key in the file, or among the overrides.
    """
    cfg = read_config(config_file, overrides)
    fall_back_to_cpu(cfg)
    try:
        register_custom_datasets(cfg)
    except OSError as error:
        if needs_data:
            raise
        logger.info("Going on without the config's data sets: %s", error)
    return cfg


def file_records(files) -> list[dict]:
    """Image files as records of Detectron2's format.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there are none.
    """
    if not files:
        raise ValueError("no image given")
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such image (KEY VALUE go before --images)")
    return [{"file_name": str(file)} for file in files]


def write_json(file, result: dict) -> None:
    """`result` with the command, machine, versions and commit that it was made with."""
    made = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made | result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {file}")
