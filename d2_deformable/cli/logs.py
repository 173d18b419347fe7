"""The loggers of a training: Detectron2's, in plain text wherever nobody sees colours."""

import logging
import re
import sys

from detectron2.utils.logger import setup_logger

from .command import is_expected

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class PlainFormatter(logging.Formatter):
    """Another formatter's text without colour codes; Pygments puts some into the messages."""

    def __init__(self, formatter):
        super().__init__()
        self._formatter = formatter

    def format(self, record):
        return COLOUR.sub("", self._formatter.format(record))


def set_up_logs(output_dir: str, rank: int, debug: bool = False) -> None:
    """Set up the loggers that Detectron2's `default_setup` finds, on stdout and in log.txt.

    Args:
        debug: also show on stdout the tracebacks of errors that `command.run` reports in one line.
            log.txt has them all.
    """
    # The arguments are those of default_setup, since setup_logger returns what it has made for the
    # same arguments.
    loggers = [
        setup_logger(output_dir, distributed_rank=rank, name="fvcore"),
        setup_logger(output_dir, distributed_rank=rank),
        setup_logger(output_dir, distributed_rank=rank, name="d2_deformable"),
    ]
    for logger in loggers:
        consoles = [h for h in logger.handlers if getattr(h, "stream", None) is sys.stdout]
        shown = consoles[-1:] if rank == 0 else []
        # The command line has made one before OUTPUT_DIR and the rank were known.
        for handler in set(consoles) - set(shown):
            logger.removeHandler(handler)
        for handler in shown:
            handler.removeFilter(_is_unexpected)
            if not debug:
                handler.addFilter(_is_unexpected)
        for handler in logger.handlers:
            stream = getattr(handler, "stream", None)
            if stream is None or isinstance(handler.formatter, PlainFormatter):
                continue
            if stream.closed or not stream.isatty():
                handler.setFormatter(PlainFormatter(handler.formatter))


def _is_unexpected(record) -> bool:
    """Filter out tracebacks of errors that `command.run` reports in one line."""
    return not (record.exc_info and is_expected(record.exc_info[1]))
