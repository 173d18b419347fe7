"""Write predictions to a folder, in the formats that other tools read.

Each prediction is appended at once to predictions.jsonl, so that an interrupted run loses nothing.
The other files of results are made from it at the end.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pycocotools.mask as coco_masks
from PIL import Image

from ..utils.files import replacing
from ..utils.text import one_line
from .draw import draw_prediction, index_image
from .predictor import Prediction
from .video import writing_video

JOURNAL = "predictions.jsonl"
KINDS = ("images", "json", "coco", "csv", "txt")
DRAWABLE = (".bmp", ".jpeg", ".jpg", ".png")  # suffixes that a picture keeps


class OutputFolder:
    """A folder of predictions; it stays as it was until the first of them.

    Args:
        folder: created if it does not exist.
        settings: whatever makes predictions comparable, e.g. model and threshold; JSON.
        class_names: name of each class index.
        kinds: which of KINDS to write.
        files: all inputs, which determine the names below the folder.
        resume: keep the predictions of an earlier run instead of replacing them.

    Raises:
        ValueError: an unknown kind; or with `resume`, the folder holds predictions with other
            settings.
    """

    def __init__(self, folder, settings: dict, class_names, kinds, files, resume: bool = False):
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"cannot save {', '.join(unknown)}; expected some of {KINDS}")
        self.folder, self.class_names, self.kinds = Path(folder), class_names, kinds
        self.root = _common_folder(files)
        stems = Counter(self._relative(file).with_suffix("") for file in files)
        self._shared_stems = {stem for stem, count in stems.items() if count > 1}
        self.journal = self.folder / JOURNAL
        holds_some = resume and self.journal.is_file() and self.journal.stat().st_size > 0
        kept = self._kept(settings) if holds_some else []
        self.done = {line["file"] for line in kept}
        self._first_lines = [json.dumps({"settings": settings}), *map(json.dumps, kept)]
        self._started = False
        if kept:
            self._start()

    def add(self, image, prediction: Prediction) -> None:
        """Write what was found in one image, RGB (H, W, 3) uint8."""
        if "images" in self.kinds:
            drawn = draw_prediction(image, prediction, self.class_names)
            Image.fromarray(drawn).save(self._picture(prediction.file), quality=92)
        record = as_record(prediction, self.class_names)
        if prediction.labels is not None:
            mask = self._path("masks", prediction.file, ".png")
            index_image(prediction.labels, len(self.class_names)).save(mask)
            record["mask"] = mask.relative_to(self.folder).as_posix()
        self.append(record)

    def append(self, record: dict) -> None:
        """Append a line to the journal."""
        if not self._started:
            self._start()
        with self.journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(record) + "\n")

    def records(self) -> Iterator[dict]:
        """Read the journal, without its settings."""
        if not self._started:
            return
        with self.journal.open(encoding="utf-8") as lines:
            next(lines)
            for line in lines:
                yield json.loads(line)

    def finish(self) -> list[Path]:
        """Write the files of results from the journal; return all paths that were written."""
        if not self._started:
            return []
        written = [self.journal]
        for kind, name, write in (
            ("json", "predictions.json", self._write_json),
            ("coco", "predictions_coco.json", self._write_coco),
            ("csv", "predictions.csv", self._write_csv),
        ):
            if kind in self.kinds:
                with replacing(self.folder / name) as part:
                    write(part)
                written.append(self.folder / name)
        if "txt" in self.kinds:
            self._write_labels()
        folders = ("images", "masks", "labels")
        return written + [self.folder / f for f in folders if (self.folder / f).is_dir()]

    @contextmanager
    def writing_video(self, file, rate: float):
        """Yield a function (image, prediction) that appends to the annotated copy of a video."""
        if "images" not in self.kinds:
            yield lambda image, prediction: None
            return
        suffix = "" if Path(file).suffix == ".mp4" else ".mp4"
        with writing_video(self._path("images", file, suffix), rate) as write:
            yield lambda image, found: write(draw_prediction(image, found, self.class_names))

    def append_frame(self, prediction: Prediction, number: int, seconds: float) -> None:
        """Append the record of a video's frame; labels are only counted."""
        record = as_record(prediction, self.class_names)
        self.append(record | {"frame": number, "time": seconds})

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.journal) as part:
            part.write_text("\n".join(self._first_lines) + "\n", encoding="utf-8")
        self._started = True

    def _kept(self, settings) -> list[dict]:
        """Records of an earlier run: of images, and of videos that were finished."""
        first, *lines = self.journal.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            before = dict(json.loads(first)["settings"])
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.journal}: its first line is damaged ({one_line(error)}); expected the "
                "settings of a run. Remove the file, or leave out --skip-existing"
            ) from None
        if before != settings:
            differing = sorted(k for k in before | settings if before.get(k) != settings.get(k))
            raise ValueError(
                f"{self.folder} holds predictions with other settings ({', '.join(differing)}): "
                "choose another --output, or replace them by leaving out --skip-existing"
            )
        records = []
        for line in lines:
            try:
                record = json.loads(line)
            except (RecursionError, ValueError):
                break  # the line that was being written when the run was killed
            if not isinstance(record, dict) or not isinstance(record.get("file"), str):
                break
            records.append(record)
        finished = {record["file"] for record in records if "frames" in record}
        return [r for r in records if "frame" not in r or r["file"] in finished]

    def _relative(self, file) -> Path:
        return Path(os.path.abspath(file)).relative_to(self.root)

    def _path(self, kind: str, file, suffix: str) -> Path:
        """Path below a subfolder; it keeps the suffix of `file`, so that names stay distinct."""
        relative = self._relative(file)
        path = self.folder / kind / relative.with_name(relative.name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _picture(self, file) -> Path:
        return self._path("images", file, "" if Path(file).suffix.lower() in DRAWABLE else ".png")

    def _write_json(self, part) -> None:
        with part.open("w", encoding="utf-8") as out:
            out.write("[")
            for i, record in enumerate(self.records()):
                out.write((",\n" if i else "\n") + json.dumps(record))
            out.write("\n]\n")

    def _write_coco(self, part) -> None:
        """Write a data set in COCO's format whose annotations also have a score."""
        images: list[dict] = []
        annotations: list[dict] = []
        for record in self.records():
            if "boxes" not in record:
                continue
            image = {
                "id": len(images) + 1,
                "file_name": self._relative(record["file"]).as_posix(),
                "width": record["width"],
                "height": record["height"],
            }
            images.append(image | {k: record[k] for k in ("frame", "time") if k in record})
            masks = record.get("masks") or [None] * len(record["boxes"])
            for box, score, index, mask in zip(
                record["boxes"], record["scores"], record["classes"], masks, strict=True
            ):
                x0, y0, x1, y1 = box
                one = {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": index + 1,
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "area": round((x1 - x0) * (y1 - y0), 2),
                    "iscrowd": 0,
                    "score": score,
                }
                if mask:
                    one |= {"segmentation": mask, "area": int(coco_masks.area(mask))}
                annotations.append(one)
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(self.class_names)]
        content = {"images": images, "categories": categories, "annotations": annotations}
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def _write_csv(self, part) -> None:
        with part.open("w", encoding="utf-8", newline="") as out:
            table = csv.writer(out)
            table.writerow(["file", "x0", "y0", "x1", "y1", "class", "score", "time"])
            for record in self.records():
                rows = zip(
                    record.get("boxes", ()), record.get("names", ()), record.get("scores", ())
                )
                for box, name, score in rows:
                    table.writerow([record["file"], *box, name, score, record.get("time", "")])

    def _write_labels(self) -> None:
        """Write labels/<stem>.txt: class index, centre x, y, width, height (0 to 1), score.

        If several inputs of a folder share a stem, their files keep the suffix: a.jpg.txt.
        """
        for record in self.records():
            if "boxes" not in record:
                continue
            relative = self._relative(record["file"])
            shared = relative.with_suffix("") in self._shared_stems
            name = relative.name if shared else relative.stem
            frame = f"_{record['frame']:06d}" if "frame" in record else ""
            file = self.folder / "labels" / relative.with_name(f"{name}{frame}.txt")
            file.parent.mkdir(parents=True, exist_ok=True)
            w, h = record["width"], record["height"]
            lines = []
            for (x0, y0, x1, y1), index, score in zip(
                record["boxes"], record["classes"], record["scores"], strict=True
            ):
                numbers = ((x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h)
                lines.append(" ".join([str(index), *(f"{v:.6f}" for v in numbers), str(score)]))
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def as_record(prediction: Prediction, class_names) -> dict:
    """Make a dict that JSON can hold; labels become pixel counts per class."""
    record = {name: getattr(prediction, name) for name in ("file", "width", "height")}
    if prediction.labels is None:
        names = ("boxes", "scores", "classes", "names")
        record |= {name: getattr(prediction, name) for name in names}
        return record | ({"masks": prediction.masks} if prediction.masks else {})
    found = {i: int((prediction.labels == i).sum()) for i in range(len(class_names))}
    return record | {"pixels": {class_names[i]: n for i, n in found.items() if n}}


def _common_folder(files) -> Path:
    folders = [Path(os.path.abspath(file)).parent for file in files]  # without ".."
    common = folders[0]
    while not all(folder.is_relative_to(common) for folder in folders):
        common = common.parent
    return common
