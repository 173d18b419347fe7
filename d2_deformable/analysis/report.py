"""A self-contained HTML report of a finished run: settings, results, curves and pictures."""

import math
from html import escape
from pathlib import Path

from ..checkpoint import load_model
from ..data import DatasetMapper, load_flagged, read_mask, register_custom_datasets
from ..data.records import class_names, dataset_records, read_inputs
from ..engine import fall_back_to_cpu
from ..engine.evaluate import evaluate_checkpoint
from ..engine.finished_run import read_run
from ..engine.offset_health import STATISTICS, deformable_layers
from ..evaluation import COUNTS
from ..layers import DeformConv2d
from ..utils.files import replacing
from ..utils.html import content_policy
from ..utils.pixels import read_image
from ..utils.provenance import commit, machine, versions
from ..utils.text import count
from . import draw, draw_errors, errors
from .draw_dilation import draw_bars
from .effective_dilation import EffectiveDilation, annotated_boxes
from .record import inspect_image
from .report_pictures import remove_pictures, save_picture
from .segmentation import draw_segmentation
from .visualize import found_above, units_of_labels

DILATION_IMAGES = 20  # enough for stable means; `analyze dilation` takes all images
METRICS = ("AP", "AP50", "AP70", "AP75", "APs", "APm", "APl")  # the order of columns
CAPTIONS = {
    "segmentation": "Class of every pixel, predicted and true; ignored pixels are not coloured.",
    "detections": "Detections with class and score.",
    "sampling_points": "Sampling points of single units (green) of the last deformable "
    "convolution, through the last {layers} deformable layers (figure 5 of the paper). Upper row: "
    "the fixed grid of a plain network. Lower row: the {points} red points that this network "
    "learned. Points beyond the image are left out. Black: the object at the unit.",
    "precision_recall": "Precision and recall of each class at an IoU of 0.5, with its number of "
    "objects.",
    "confusion": "What objects (rows) were detected as (columns), at scores of {score:.0%} or more "
    "and an IoU of 0.5. Colours are shares of a row.",
    "misses": "The largest objects that no detection of {score:.0%} or more found.",
    "false_positives": "The detections with the highest scores that found no object.",
    "effective_dilation": "Effective dilation by size of object, over {images}: the mean "
    "distance between adjacent sampling points of the filters whose centres lie on an object "
    "(table 2 of the paper). Small objects cover less than 96 x 96 pixels of the image, large ones "
    "more than 224 x 224. Lines: standard deviation. Dashed: the dilation without "
    "offsets, which is also that of the plain layers among them.",
    "parts": "Detected boxes (yellow) and the parts (red) that deformable RoI pooling samples in "
    "each (figure 6 of the paper). Upper row: the fixed bins of plain pooling. Lower row: the bins "
    "as this network learned to shift them.",
}


def write_report(
    folder,
    num_images: int = 4,
    score_thresh: float = 0.5,
    overrides=(),
    beside: str = "",
) -> Path:
    """Write `folder`/pictures/*.png and `folder`/report.html.

    Args:
        folder: OUTPUT_DIR of a finished run, see `read_run`.
        num_images: number of test images, evenly spaced, to draw pictures of.
        score_thresh: detections with a lower score are not drawn.
        overrides: KEY, VALUE, ... on top of the run's config.
        beside: another checkpoint of this network, path or URL, to evaluate on the same test sets
            and draw on the same images.

    Returns:
        the path of report.html.

    Raises:
        FileNotFoundError: the folder or its data set is incomplete, or `beside` does not exist.
        FileExistsError: `folder`/pictures has a file of the user's with the name of a picture.
        ValueError: an override is unknown, or a checkpoint is from another network.
    """
    run = read_run(folder, overrides)
    cfg = run.cfg
    fall_back_to_cpu(cfg)
    register_custom_datasets(cfg)
    model = load_model(cfg, run.checkpoint)
    models, results = {"": model}, {"": run.results}
    if beside:
        models[beside], results[beside] = evaluate_checkpoint(cfg, beside)

    pictures = run.folder / "pictures"
    pictures.mkdir(exist_ok=True)
    remove_pictures(pictures)
    sections = [_facts(run, model), _results(results, cfg.DATASETS.TEST)]
    if run.iterations:
        figure = draw.draw_curves(run.history)
        text = "Losses (median of the last 20 steps) and learning rate."
        sections += ["<h2>Training</h2>", save_picture(figure, pictures / "curves.png", text)]
    sections += [
        _errors(run, score_thresh, pictures),
        _offsets(run, model, pictures),
        _images(cfg, models, num_images, score_thresh, pictures),
    ]
    config = f"<details><summary>Full config</summary><pre>{escape(cfg.dump())}</pre></details>"
    policy = content_policy(PAGE.format(title="", body="", policy=""))
    body = "\n".join([*sections, config])
    page = PAGE.format(title=escape(run.name), body=body, policy=policy)
    report = run.folder / "report.html"
    with replacing(report) as part:
        # The name of a file may hold bytes that are not UTF-8.
        part.write_text(page, encoding="utf-8", errors="replace")
    return report


def _facts(run, model):
    rows = {
        "Config": run.config_file or "unknown",
        "Command": run.command or "unknown",
        "Data": f"trained on {', '.join(run.cfg.DATASETS.TRAIN) or 'nothing'}, "
        f"tested on {', '.join(run.cfg.DATASETS.TEST) or 'nothing'}",
        "Training": f"{count(run.iterations, 'iteration')} of "
        f"{count(run.cfg.SOLVER.IMS_PER_BATCH, 'image')}, "
        f"{run.seconds:,.0f} seconds without evaluation",
        "Parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "Checkpoint": run.checkpoint.name,
        "Device": f"{run.cfg.MODEL.DEVICE}; this page was written on {machine()}",
        "Versions": versions(),
        "Commit of d2_deformable": commit(),
    }
    cells = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<div class=scroll><table class=facts>{''.join(cells)}</table></div>"


def _results(results, datasets):
    """Make tables of {"": results of the run, name: results of another checkpoint}.

    Args:
        datasets: that they were tested on.
    """
    html = "<h2>Results</h2>"
    if not any(results.values()):
        return html + "<p>This run was not evaluated.</p>"
    images = {name: count(len(dataset_records([name])), "image") for name in datasets}
    html += f"<p>On {' and '.join(f'{n} of {escape(name)}' for name, n in images.items())}.</p>"
    summary, per_class = {}, {}
    for checkpoint, groups in results.items():
        for group, metrics in groups.items():
            title = f"{_title(group)} of {checkpoint}" if checkpoint else _title(group)
            for metric, value in metrics.items():
                name, _, of_class = metric.partition("-")
                if not of_class:
                    summary.setdefault(title, {})[name] = value
                elif not checkpoint:
                    per_class.setdefault(of_class, {})[f"{title} {name}"] = value
    html += _table("", summary)
    if per_class:
        html += "<h3>Per class</h3>" + _table("class", per_class)
    return html


def _title(group):
    *dataset, task = group.split("/")
    names = {"bbox": "COCO", "voc": "VOC", "segm": "COCO masks", "sem_seg": "segmentation"}
    return " ".join([*dataset, names.get(task, task)])


def _table(corner, rows, decimals=1):
    """Make a table of {row name: {column name: number}}; COUNTS are whole numbers."""
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    columns = sorted(columns, key=lambda c: METRICS.index(c) if c in METRICS else len(METRICS))
    html = "".join(f"<th>{escape(name)}</th>" for name in [corner, *columns])
    for name, row in rows.items():
        cells = ""
        for column in columns:
            n = row.get(column, math.nan)
            text = "–" if math.isnan(n) else f"{n:,.{0 if column in COUNTS else decimals}f}"
            cells += f"<td>{text}</td>"
        html += f"</tr><tr><th>{escape(name)}</th>{cells}"
    return f"<div class=scroll><table><tr>{html}</tr></table></div>"


def _errors(run, score_thresh, pictures):
    """Draw the errors of the last evaluation, if it was of the first test set."""
    name = next(iter(run.cfg.DATASETS.TEST), None)
    file = run.folder / errors.PREDICTIONS
    if name is None or not file.is_file():
        return ""
    records = load_flagged(name)
    objects = errors.annotated_objects(records)
    classes = class_names(run.cfg, name)
    try:
        detections = errors.read_predictions(file, records, name, len(classes))
    except ValueError as error:
        return f"<h2>Errors</h2><p>{escape(str(error))}.</p>"
    if not (len(objects) and len(detections)):
        return ""
    matches = errors.match(detections, objects)
    figure = draw_errors.draw_precision_recall(matches, classes)
    html = f"<h2>Errors on {escape(name)}</h2>"
    html += save_picture(figure, pictures / "precision_recall.png", CAPTIONS["precision_recall"])
    if len(classes) <= draw_errors.MOST_CLASSES:
        counts = errors.confusion(detections, objects, len(classes), score_thresh)
        figure = draw_errors.draw_confusion(counts, classes)
        text = CAPTIONS["confusion"].format(score=score_thresh)
        html += save_picture(figure, pictures / "confusion.png", text)
    misses = errors.worst_misses(matches, score_thresh, 8)
    wrong = errors.worst_false_positives(matches, 8)
    for kind, found, indices, color in (
        ("misses", objects, misses, draw.YELLOW),
        ("false_positives", matches.detections, wrong, draw.RED),
    ):
        if indices:
            figure = draw_errors.draw_crops(records, found, indices, classes, color)
            text = CAPTIONS[kind].format(score=score_thresh)
            html += save_picture(figure, pictures / f"{kind}.png", text)
    return html


def _offsets(run, model, pictures):
    """Show the offsets by layer: their last statistics and the effective dilation."""
    html = "<h2>Offsets</h2>"
    layers = deformable_layers(model)
    if not layers:
        return html + "<p>This network has no deformable layer, and so no offsets.</p>"
    last = {key: value for line in run.history for key, value in line.items()}
    rows = {}
    for layer in layers:
        keys = {name: f"offsets/{layer}/{name}" for name in STATISTICS}
        rows[layer] = {name: last[key] for name, key in keys.items() if key in last}
    if any(rows.values()):
        html += (
            "<p>Mean, standard deviation and 99th percentile of their length at the end of "
            "training, in cells of the layer's map or, for RoI pooling, in sizes of the RoI; and "
            "the share of samples outside the map.</p>" + _table("layer", rows, decimals=3)
        )
    name = _shown_dataset(run.cfg)
    if name and any(isinstance(layer, DeformConv2d) for layer in layers.values()):
        dilation = EffectiveDilation(model)
        records = dataset_records([name], DILATION_IMAGES)
        for record in records:
            dilation.add(read_inputs(run.cfg, record)[1], annotated_boxes(record))
        text = CAPTIONS["effective_dilation"].format(images=count(len(records), "image"))
        file = pictures / "effective_dilation.png"
        html += save_picture(draw_bars(dilation.as_dict()), file, text)
    return html


def _shown_dataset(cfg):
    """The first test set, or the training set if there is none, or None."""
    return next(iter((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)), None)


def _images(cfg, models, num_images, score_thresh, pictures):
    """Draw evenly spaced images of the first test set, or of the training set if there is none."""
    name = _shown_dataset(cfg)
    if name is None or num_images < 1:
        return ""
    classes = class_names(cfg, name)
    mapper = DatasetMapper(cfg, False)
    mapper.output_size = "image"  # even if evaluation uses another size
    html = f"<h2>Images of {escape(name)}</h2>"
    for i, record in enumerate(dataset_records([name], num_images)):
        image = read_image(record["file_name"], "RGB")
        html += f"<h3>{escape(Path(record['file_name']).name)}</h3>"
        for checkpoint, model in models.items():
            inspection = inspect_image(model, mapper(record))
            found = found_above(inspection, score_thresh)
            if checkpoint:
                html += f"<h4>{escape(checkpoint)}</h4>"
            if inspection.labels is not None:
                truth = read_mask(record["sem_seg_file_name"])
                figure = draw_segmentation(image, inspection.labels, truth, classes)
                stem = f"{i}_beside_segmentation" if checkpoint else f"{i}_segmentation"
                html += save_picture(figure, pictures / f"{stem}.png", CAPTIONS["segmentation"])
            elif not len(found):
                html += f"<p>Nothing was detected with a score of {score_thresh:.0%} or more.</p>"
            for kind, figure, text in _draw(image, inspection, found, classes):
                stem = f"{i}_beside_{kind}" if checkpoint else f"{i}_{kind}"
                html += save_picture(figure, pictures / f"{stem}.png", text)
    return html


def _draw(image, inspection, found, classes):
    """Yield (kind, figure, caption) of every picture of this network and image."""
    convs, pools = inspection.record.stack(3), inspection.record.pools
    if len(found):
        yield "detections", draw.draw_detections(image, found, classes), CAPTIONS["detections"]
    if convs:
        points = math.prod(conv.offset.shape[1] for conv in convs) * convs[-1].offset.shape[0]
        text = CAPTIONS["sampling_points"].format(layers=len(convs), points=points)
        if inspection.labels is None:
            units = draw.units_on(found[:2], inspection.image_size, classes)
        else:
            units = units_of_labels(inspection.labels, classes)
        if units:
            yield "sampling_points", draw.draw_sampling_points(image, inspection, units), text
    if pools and len(found):
        yield "parts", draw.draw_parts(image, inspection, found[:3], classes), CAPTIONS["parts"]


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 60rem; margin: 0 auto; padding: 1rem; color: #23272e; background: #fff;
  font: 1rem/1.5 system-ui, sans-serif }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere }}
h2 {{ font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #d8dce1 }}
h3, h4 {{ font-size: 1rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere }}
h4 {{ margin-top: 1rem; font-weight: normal }}
table {{ border-collapse: collapse; font-size: .9rem }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #e7eaed; text-align: right }}
th {{ font-weight: 600; text-align: left }}
tr:first-child th:not(:first-child) {{ text-align: right }}
tr > :first-child {{ overflow-wrap: anywhere; min-width: 7rem }}
.facts th, .facts td {{ text-align: left; vertical-align: top; padding-left: 0 }}
.facts td {{ overflow-wrap: anywhere }}
.scroll {{ overflow-x: auto; margin-bottom: 1.5rem }}
figure {{ margin: 0 0 1.5rem }}
img {{ max-width: 100%; height: auto; display: block }}
figcaption {{ font-size: .9rem; color: #5a626d; margin-top: .3rem }}
pre {{ font-size: .8rem; overflow-x: auto; background: #f6f7f8; padding: .7rem }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
