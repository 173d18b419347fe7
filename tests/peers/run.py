"""Run peers' own tests with this package's operators in the place of theirs, and print a table.

    python tests/peers/run.py vision=FOLDER detectron2=FOLDER mmcv=FOLDER

Each FOLDER is a copy of the peer's repository, or of its test folder and, for mmcv, its package.
Without arguments, the folders of these names in the folder D2_DEFORMABLE_PEERS are taken, and the
tests beside an installed package (an editable install). Nothing of a copy is changed.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Peer:
    """name: of its repository. package: what its tests import, and `modules` besides.
    tests: files in the copy. select: of pytest's -k."""

    name: str
    package: str
    tests: tuple
    select: str = ""
    own_package: bool = False  # that of the copy, which need not be built
    modules: tuple = ()


PEERS = (
    Peer(
        "vision",
        "torchvision",
        ("test/test_ops.py",),
        select="TestDeformConv or TestPSRoIPool or TestRoIAlign and not quantized and not qroi",
    ),
    Peer("detectron2", "detectron2", ("tests/layers/test_deformable.py",)),
    Peer(
        "mmcv",
        "mmcv",
        tuple(
            f"tests/test_ops/test_{name}.py"
            for name in ("deform_conv", "modulated_deform_conv", "deform_roi_pool")
        ),
        own_package=True,
        modules=("mmengine", "cv2"),
    ),
)


def find(peer: Peer, given: dict) -> tuple[Path | None, str]:
    """The folder with the peer's tests, or None and the reason."""
    folder = given.get(peer.name)
    every = os.environ.get("D2_DEFORMABLE_PEERS")
    if folder is None and every:
        folder = Path(every) / peer.name
    if folder is None:
        spec = importlib.util.find_spec(peer.package)
        folder = Path(spec.origin).parents[1] if spec and spec.origin else None
    folder = folder and folder.resolve()
    missing = [name for name in peer.tests if folder is None or not (folder / name).is_file()]
    if missing:
        where = "" if folder is None else f" in {folder}"
        return None, f"no {missing[0]}{where}: give {peer.name}=FOLDER or set D2_DEFORMABLE_PEERS"
    for module in (*peer.modules, *([] if peer.own_package else [peer.package])):
        if importlib.util.find_spec(module) is None:
            return None, f"{module} is not installed"
    return folder, ""


@dataclass
class Result:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    calls: int = 0  # of our operators
    why: str = ""


def run(peer: Peer, folder: Path) -> dict[str, Result]:
    """Results of the peer's test functions, all parameters together."""
    paths = [REPOSITORY, REPOSITORY / "tests", *([folder] if peer.own_package else [])]
    environment = os.environ | {
        "PEER": peer.name,
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "peers.in_place"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "-k", peer.select]
        command += [f"--junitxml={report}", f"--rootdir={folder}", "-c", os.devnull]
        command += [str(folder / name) for name in peer.tests]
        process = subprocess.run(
            command, cwd=temporary, env=environment, capture_output=True, text=True
        )
        if not report.is_file():
            return {"(none)": Result(failed=1, why=(process.stdout + process.stderr)[-500:])}
        return collect(ElementTree.parse(report).iter("testcase"))


def collect(cases) -> dict[str, Result]:
    results = defaultdict(Result)
    for case in cases:
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        result = results[name.partition("[")[0]]
        for recorded in case.iter("property"):
            result.calls += int(recorded.get("value"))
        skipped = case.find("skipped")
        failure = next((x for x in case if x.tag in ("failure", "error")), None)
        if skipped is not None:
            result.skipped, result.why = result.skipped + 1, skipped.get("message", "")
        elif failure is None:
            result.passed += 1
        else:
            result.failed, result.why = result.failed + 1, failure.get("message", "")
    return results


def total(results: dict[str, Result]) -> Result:
    numbers = [(r.passed, r.failed, r.skipped, r.calls) for r in results.values()]
    return Result(*map(sum, zip(*numbers, strict=True)))


def table(results: dict[str, Result]) -> str:
    rows = [("test", "passed", "failed", "skipped", "calls", "why")]
    for name, r in [*results.items(), ("all", total(results))]:
        numbers = map(str, (r.passed, r.failed, r.skipped, r.calls))
        rows.append((name, *numbers, " ".join(r.why.split())[:120]))
    rows.insert(1, ("---",) * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments) -> int:
    given = {name: Path(folder) for name, _, folder in (a.partition("=") for a in arguments)}
    unknown = given.keys() - {peer.name for peer in PEERS}
    if unknown:
        print(f"{', '.join(unknown)}: expected {', '.join(peer.name for peer in PEERS)}")
        return 2
    failed = 0
    for peer in PEERS:
        folder, reason = find(peer, given)
        if folder is None:
            print(f"\n{peer.name}: skipped, {reason}")
            continue
        results = run(peer, folder)
        failed += total(results).failed
        print(f"\n{peer.name}\n\n{table(results)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
