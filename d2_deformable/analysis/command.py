"""What every analysis command does first and last: a trained network in, a JSON file out."""

import json
import logging
import shlex
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

from ..checkpoint import StrictCheckpointer
from ..data import DatasetMapper, register_custom_datasets
from ..engine import fall_back_to_cpu, read_config
from ..modeling.meta_arch.predicates import is_segmentor
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


def load_model(cfg, weights):
    """The network of `cfg` with the weights of one file, in evaluation mode.

    Args:
        weights: a path, or any URL that MODEL.WEIGHTS may be.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no checkpoint, or of another network.
    """
    model = build_model(cfg)
    StrictCheckpointer(model).load(str(weights))
    return model.eval()


def dataset_records(names, max_images: int = 0) -> list[dict]:
    """Images of registered data sets in Detectron2's format, `max_images` evenly spread; 0: all.

    Raises:
        ValueError: there are none, or no such data set.
    """
    for name in names:
        if name not in DatasetCatalog:
            raise ValueError(
                f"there is no data set {name}: name one of the config's DATASETS.CUSTOM or of "
                "Detectron2's own"
            )
    records = [record for name in names for record in DatasetCatalog.get(name)]
    if not records:
        raise ValueError(
            f"no image in {', '.join(names) or 'DATASETS.TEST, which is empty'}: name a data set"
        )
    n = len(records)
    if not 0 < max_images < n:
        return records
    return [records[n * (2 * i + 1) // (2 * max_images)] for i in range(max_images)]


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


def read_inputs(cfg, record: dict):
    """The image of a record, RGB (H, W, 3) uint8, and the input that a model of `cfg` takes.

    Raises:
        OSError: the image cannot be read.
    """
    inputs = DatasetMapper(cfg, False)(record)
    image = read_image(record["file_name"], "RGB")
    inputs["height"], inputs["width"] = image.shape[:2]
    return image, inputs


def class_names(cfg, dataset_name: str | None = None) -> list[str]:
    """Names of what the network tells apart, as the data set has them, else "class i"."""
    segments = is_segmentor(cfg)
    field = "stuff_classes" if segments else "thing_classes"
    names = []
    if dataset_name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(dataset_name)
        try:
            if not hasattr(metadata, field):
                DatasetCatalog.get(dataset_name)  # some formats know their classes only then
        except OSError as error:
            logger.info("Going on without names of classes: %s", error)
        names = getattr(metadata, field, None) or []
    n = (cfg.MODEL.SEM_SEG_HEAD if segments else cfg.MODEL.ROI_HEADS).NUM_CLASSES
    return [*names, *(f"class {i}" for i in range(len(names), n))]


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
