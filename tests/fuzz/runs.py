"""Files that a run leaves, as the report reads them. The first byte chooses the file."""

from d2_deformable.analysis.errors import read_predictions
from d2_deformable.engine.finished_run import read_run

from ._files import FOLDER, refused_in_a_sentence

RUN = FOLDER / "run"
RUN.mkdir()
(RUN / "model_final.pth").touch()
(RUN / "config.yaml").write_text("VERSION: 2\n")
FILES = ("metrics.json", "log.txt", "results.json")
RECORDS = [{"image_id": 1}, {"image_id": "a"}]


def one_input(data: bytes) -> None:
    if not data:
        return
    file = RUN / FILES[data[0] % len(FILES)]
    file.write_bytes(data[1:])
    try:
        with refused_in_a_sentence(file):
            if file.name == "results.json":
                found = read_predictions(file, RECORDS, "fuzzed", 2)
                assert found.boxes.shape == (len(found), 4)
            else:
                run = read_run(RUN)
                assert isinstance(run.name + run.command, str)
                f"{run.iterations:,} {run.seconds:,.0f}"
                for metrics in run.results.values():
                    [f"{value:,.1f}" for value in metrics.values()]
    finally:
        file.unlink()


_LOG = (
    b"\x01[1] d2: Command line arguments: Namespace(config_file='a.yaml', resume=False, "
    b"eval_only=False, num_gpus=1, num_machines=1, opts=['SOLVER.MAX_ITER', '2'])\n"
)

SEEDS = [
    b'\x00{"iteration": 19, "total_loss": 1.5, "time": 0.5}\n{"iteration": 20, "bbox/AP": NaN}\n',
    b'\x00{"iteration": 19, "total_loss": 1' + b"0" * 400 + b', "lr": {}}\n{"iteration": 2',
    b'\x00{"iteration": true}\n{}\n',
    b"\x00" + b"[" * 100_000,
    _LOG,
    _LOG.replace(b"['SOLVER", b"[" * 300 + b"['SOLVER"),
    _LOG.replace(b"'a.yaml'", b"1"),
    _LOG.replace(b"resume=False, ", b"\xff\x00"),
    b'\x02[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
    b'\x02[{"image_id": [], "category_id": 9, "bbox": [1, 2], "score": {}}]',
]
