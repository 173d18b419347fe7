"""Check this installation: versions, back ends, a self-test of each operator, known problems."""

import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict

from .. import __version__
from ..utils import environment
from ..utils.environment import Finding, brief
from ..utils.library import BUILD, PATH, Build, read_build, same_minor
from ..utils.provenance import commit, machine
from . import command

EXAMPLE = """
The exit status is 1 if something does not work. Nothing is changed.

example:
  d2-deformable doctor
"""
REMEDY = f"run {BUILD}"


def parser():
    parser = command.parser("doctor", __doc__, EXAMPLE)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(args):
    found = examine()
    print(json.dumps(found, indent=1) if args.json else report(**found))
    if any(finding["broken"] for finding in found["findings"]):
        sys.exit(1)


def examine() -> dict:
    """Examine the installation; the result can be written as JSON."""
    package = {"version": __version__, "commit": commit(), "folder": str(PATH.parent)}
    operators = {"torch": None, "cpu": None, "cuda": None}
    results = []
    findings = list(environment.check_packages())
    try:
        import torch
    except Exception:  # of any type, and found above
        pass
    else:
        package["machine"] = machine()
        build = read_build(PATH) if PATH.exists() else Build(None, ())
        operators["torch"] = build.torch
        library = list(check_library(build, torch.__version__))
        findings += library
        if not any(finding.broken for finding in library):
            from .. import ops
            from ..ops.self_test import cpu_kernels, self_test

            operators["cpu"] = cpu_kernels()
            operators["cuda"] = list(build.cuda_architectures) if ops.has_cuda() else None
            devices = ["cpu"] + ["cuda"] * (ops.has_cuda() and torch.cuda.is_available())
            results = [result for device in devices for result in self_test(device)]
            findings += check_results(results)
            findings += environment.check_gpu(ops.has_cuda())
        findings += environment.check_threads()
    findings += check_detectron2(works=not any(finding.broken for finding in findings))
    findings += environment.check_shared_memory()
    return {
        "package": package,
        "versions": environment.versions(),
        "operators": operators,
        "self_test": [asdict(result) | {"passed": result.passed} for result in results],
        "findings": [asdict(finding) for finding in findings],
    }


def check_library(build: Build, torch_version: str) -> Iterator[Finding]:
    """Load the operators; if that fails, compare torch with the one that they were built with."""
    try:
        from .. import ops  # noqa: F401
    except Exception as error:  # of any type
        if not PATH.exists():
            problem = f"the operators are not built: {PATH} is missing"
        elif build.torch and not same_minor(build.torch, torch_version):
            problem = f"the operators were built with torch {build.torch}, this is {torch_version}"
        else:
            problem = f"the operators do not load: {brief(error.__cause__ or error)}"
        yield Finding(True, problem, REMEDY)


def check_results(results) -> Iterator[Finding]:
    """One finding for all self-tests that fail in the same way on a device."""
    failed = {}
    for result in results:
        if not result.passed:
            why = result.error or "the error is too large"
            failed.setdefault((result.device, why), []).append(f"{result.operator} {result.dtype}")
    for (device, why), names in failed.items():
        yield Finding(
            True,
            f"the self-test on {device} failed: {', '.join(names)} ({why})",
            "build the operators again for this machine (TORCH_CUDA_ARCH_LIST must name the GPU): "
            + REMEDY
            if device == "cuda"
            else f"{REMEDY}; if that does not help, report it with this output",
        )


def check_detectron2(works: bool) -> Iterator[Finding]:
    """Import Detectron2, and register the networks and checkpoints of this package.

    Args:
        works: whether all that is needed for the latter works.
    """
    try:
        from .. import needs_detectron2  # noqa: F401
    except ImportError as error:
        problem, _, remedy = str(error).partition(": ")
        yield Finding(True, problem, remedy)
        return
    broken = list(environment.check_import("detectron2", "detectron2.modeling")) if works else []
    yield from broken
    if broken or not works:
        return
    from ..compat import has_compiled_d2

    if not has_compiled_d2():
        yield Finding(
            False,
            "Detectron2 has no C++ operators that work: COCO evaluation is slower, and rotated "
            "boxes and Detectron2's own deformable convolutions do not work",
            "only if you need them: `pip uninstall detectron2`, and install the official build",
        )
    try:
        from .. import modeling  # noqa: F401
        from ..model_zoo import catalog

        for name in catalog.read_index():
            catalog.checkpoint_file(name)  # and all registered indexes
    except Exception as error:  # of any type
        problem = f"networks or checkpoints do not register: {brief(error)}"
        yield Finding(True, problem, "do as the message says, or install d2_deformable again")


def report(package, versions, operators, self_test, findings) -> str:
    """Format what `examine` returns for people."""
    title = f"d2_deformable {package['version']} ({package['commit']}) in {package['folder']}"
    lines = [f"{title}, on {package['machine']}" if "machine" in package else title]
    lines += ["", "versions"]
    for name, version in versions.items():
        lines += row(name, version)
    cuda = operators["cuda"]
    lines += ["", "operators"]
    lines += row("built with", f"torch {operators['torch'] or 'of unknown version'}")
    if operators["cpu"]:
        lines += row("CPU", f"kernels for {operators['cpu']}")
        built = f"architectures {', '.join(cuda or ['unknown'])}"
        lines += row("CUDA", "none" if cuda is None else built)
    lines += ["", *self_test_table(self_test)]
    for finding in findings:
        lines += wrapped("BROKEN" if finding["broken"] else "note", finding["problem"], 8)
        lines += wrapped("", f"-> {finding['remedy']}", 8)
    broken = sum(finding["broken"] for finding in findings)
    lines += ["", f"{broken} problem{'s' * (broken > 1)} to solve" if broken else "all works"]
    return "\n".join(lines)


def self_test_table(results) -> list[str]:
    if not results:
        return []
    rows = {"": [f"{name:18}" for name in dict.fromkeys(r["operator"] for r in results)]}
    for result in results:
        errors = "  ".join(f"{result[kind] or 0:.0e}" for kind in ("forward", "backward"))
        cell = "failed" if result["error"] else errors + " !" * (not result["passed"])
        rows.setdefault(f"{result['device']} {result['dtype']}", []).append(f"{cell:18}")
    lines = ["self-test: largest error of values and gradients, as a share of the largest value"]
    for name, cells in rows.items():
        lines += row(name, "".join(cells).rstrip())
    return [*lines, ""]


def row(name: str, value: str) -> list[str]:
    return wrapped(f"  {name}", value, 17)


def wrapped(name: str, text: str, indent: int) -> list[str]:
    """Lines of at most 100 columns, with `name` in the margin of the first; words stay whole."""
    if len(text) <= 100 - indent:
        return [f"{name:{indent}}{text}"]
    return textwrap.wrap(
        text,
        100,
        initial_indent=f"{name:{indent}}",
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
