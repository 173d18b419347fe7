"""Time the operators against a plain convolution and their peers.

python -m benchmarks.ops --threads 1 --only "res5 512ch 38x63, "
python -m benchmarks.ops --device cuda --dtype float16 --json benchmarks/results/ops.json
"""

import gc
import sys
from functools import partial

import torch

from . import command
from .cases import CONVOLUTIONS, CUDA_CONVOLUTION, POOLINGS
from .clock import modes_of, poison
from .command import Bench, Row
from .exact import TOLERANCE, error, exact
from .implementations import OURS, PLAIN, TORCHVISION, Missing, implementations

PASSES = {"forward": False, "forward + backward": True}
TF32 = {"TF32 as cuDNN": True, "strict": False}  # the first is PyTorch's default


def rows(args):
    cases = [*CONVOLUTIONS, *POOLINGS]
    if args.device.type == "cuda":
        cases.append(CUDA_CONVOLUTION)
    if args.smoke:
        cases = [case.reduced() for case in cases]
    precisions = TF32 if args.device.type == "cuda" and args.dtype == "float32" else {"": None}
    for case in cases:
        for std in case.offset_stds:
            for pass_name, backward in PASSES.items():
                for mode in modes_of(args.device):
                    for precision, tf32 in precisions.items():
                        name = ", ".join(filter(None, (mode, precision)))
                        run = partial(measure, case, std, backward, mode, tf32)
                        yield Row(case.label(std), pass_name, name, run)


def measure(case, std, backward: bool, mode: str, tf32: bool | None, bench: Bench) -> dict:
    """Measure times, memory and errors of all implementations of one case.

    Raises:
        ArithmeticError: our results are wrong.
    """
    clock, dtype = bench.clock, bench.dtype
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = tf32
    tensors, expected = exact(case, std, clock.device, dtype, backward)
    implemented, missing = implementations(case, clock.device)
    runs, errors, memory = {}, {}, {}

    def timed(implementation, tensors):
        call = partial(implementation.results, implementation.prepare(tensors), backward)
        gc.collect()
        poison(expected, dtype)
        return clock.seconds(call, mode)

    for name, implementation in implemented.items():
        try:
            poison(expected, dtype)
            prepared = implementation.prepare(tensors)
            results = implementation.results(prepared, backward)
            if mode == "graph":
                timed(implementation, tensors)  # may fail although a plain call works
        except (Missing, NotImplementedError, RuntimeError) as reason:
            if name == OURS:
                raise
            missing[name] = str(reason).splitlines()[0][:160]
            continue
        if implementation.is_exact:
            errors[name] = error(case, results, expected)
        del results
        memory[name] = clock.peak_memory(partial(implementation.results, prepared, backward))
        runs[name] = partial(timed, implementation)
    tolerance = TOLERANCE[dtype]
    if not errors[OURS] <= tolerance:
        raise ArithmeticError(
            f"{case.label(std)}: error {errors[OURS]}; expected at most {tolerance}"
        )
    rounds = bench.interleave(runs, lambda: case.draw(std, clock.device, dtype))
    base = next(name for name in (PLAIN, TORCHVISION, OURS) if name in runs)
    return rounds.summary(base) | {"memory_mib": memory, "error": errors, "missing": missing}


if __name__ == "__main__":
    sys.exit(command.run(command.parser("ops", __doc__.splitlines()[0], rounds=9), rows))
