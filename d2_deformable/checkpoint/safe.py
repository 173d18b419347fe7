"""Load checkpoints as Detectron2 does, from any weights file, without running code in it."""

from collections.abc import Mapping
from urllib.parse import parse_qs

from detectron2.checkpoint import DetectionCheckpointer

from ..compat import require_private
from ..utils.files import FileFormatError
from ..utils.text import one_line
from .files import file_format, named_tensors, read_content

require_private(DetectionCheckpointer, "_load_file", "_load_model")


class SafeCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that reads .pkl files without running code, and .safetensors.

    The format is detected from the content, not the suffix. Layouts, name matching and resuming are
    those of Detectron2.
    """

    def _load_file(self, filename):
        """Read {"model": named weights, ...} and everything else that the file holds.

        Raises:
            FileFormatError: the file cannot be read safely, or holds no named weights.
        """
        content, kind = read_content(filename), file_format(filename)
        if kind == "mxnet":
            raise FileFormatError(
                f"{filename} is an MXNet file: convert it with `d2-deformable convert --from mxnet`"
            )
        named = isinstance(content, Mapping)
        if named and "model_state" in content:  # pycls
            weights = named_tensors(filename, content["model_state"]).items()
            weights = {k: v for k, v in weights if not k.endswith("num_batches_tracked")}
            content = {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        elif named and kind == "pickle" and not {"model", "__author__"} <= content.keys():
            # Caffe2: detectors have "blobs", ImageNet networks have them at the top level.
            weights = named_tensors(filename, content.get("blobs", content)).items()
            weights = {k: v for k, v in weights if not k.endswith("_momentum")}
            content = {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        else:
            content = dict(content) if named and "model" in content else {"model": content}
            content["model"] = named_tensors(filename, content["model"])
        queries = parse_qs(getattr(getattr(self, "_parsed_url_during_load", None), "query", ""))
        if queries.pop("matching_heuristics", ["False"]) == ["True"]:  # Detectron2 main
            content["matching_heuristics"] = True
        if queries:
            raise ValueError(
                f"{filename}: the query has {queries}; Detectron2 accepts only "
                "matching_heuristics=True"
            )
        self._file = filename
        return content

    def _load_model(self, checkpoint):
        try:
            return super()._load_model(checkpoint)
        except (
            AssertionError,
            IndexError,
            RuntimeError,
            ValueError,
        ) as error:  # from name matching
            raise FileFormatError(
                f"{self._file} is from another network than the config's, or its names have an "
                f"unknown layout: {one_line(error, 1000)}"
            ) from error
