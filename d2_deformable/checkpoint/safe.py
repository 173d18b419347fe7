"""Loading checkpoints as Detectron2 does, from any file of weights, without running it."""

from collections.abc import Mapping
from urllib.parse import parse_qs

from detectron2.checkpoint import DetectionCheckpointer

from .files import FileFormatError, file_format, read_content


class SafeCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that reads .pkl without running them, and .safetensors.

    What a file is shows in its content, not its suffix. Layouts, name matching and resuming are
    Detectron2's.
    """

    def _load_file(self, filename):
        """{"model": weights by their names, and whatever else the file holds}.

        Raises:
            FileFormatError: it cannot be read safely, or holds no weights by their names.
        """
        content, kind = read_content(filename), file_format(filename)
        if not isinstance(content, Mapping):
            raise FileFormatError(f"{filename} holds a {type(content).__name__}, not weights")
        if kind == "mxnet":
            raise FileFormatError(
                f"{filename} is MXNet's: convert it first, tools/convert_checkpoint.py --from mxnet"
            )
        if "model_state" in content:  # pycls
            weights = content["model_state"].items()
            weights = {k: v for k, v in weights if not k.endswith("num_batches_tracked")}
            content = {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        elif kind == "pickle" and not {"model", "__author__"} <= content.keys():  # Caffe2
            weights = content.get("blobs", content)  # of detectors; of ImageNet at the top
            weights = {k: v for k, v in weights.items() if not k.endswith("_momentum")}
            content = {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        elif "model" not in content:
            content = {"model": content}
        if not isinstance(content["model"], Mapping):
            raise FileFormatError(f"{filename} holds a {type(content['model']).__name__}")
        queries = parse_qs(getattr(getattr(self, "_parsed_url_during_load", None), "query", ""))
        if queries.pop("matching_heuristics", ["False"]) == ["True"]:  # Detectron2 main
            content = {**content, "matching_heuristics": True}
        if queries:
            raise ValueError(
                f"{filename}: after its ? Detectron2 knows matching_heuristics=True, not {queries}"
            )
        return content
