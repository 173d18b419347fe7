"""The self-test of the operators passes, and notices operators that are wrong."""

from dataclasses import replace

import pytest
import torch

from d2_deformable import ops
from d2_deformable.ops import self_test


def test_every_operator_with_every_type(device):
    results = list(self_test.self_test(device))
    assert all(result.passed for result in results), results
    operators = {name for name in ops.__all__ if callable(getattr(ops, name))} - {"has_cuda"}
    types = {"float64", "float32", "float16", "bfloat16"}
    assert {(r.operator, r.dtype) for r in results} == {(o, t) for o in operators for t in types}


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.5


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (lambda x: x * 1.1, {"forward", "backward"}),
        (lambda x: x + 0.5, {"forward"}),
        (WrongGradient.apply, {"backward"}),
    ],
)
def test_a_wrong_operator_is_noticed(change, kinds, monkeypatch):
    def changed(case):
        def operator(**arguments):
            return change(case.operator(**arguments))

        operator.__name__ = case.operator.__name__
        return replace(case, operator=operator)

    wrong = [changed(case) for case in self_test.cases()]
    monkeypatch.setattr(self_test, "cases", lambda: wrong)
    for result in self_test.self_test("cpu"):
        assert not result.passed
        tolerance = self_test.TOLERANCES[getattr(torch, result.dtype)]
        large = {kind for kind in ("forward", "backward") if getattr(result, kind) > tolerance}
        assert large == kinds


def fails(**arguments):
    raise RuntimeError("no kernel image\nis available")


def not_finite(input):
    return input * float("nan")


@pytest.mark.parametrize(
    ("operator", "message"),
    [(fails, "RuntimeError: no kernel image"), (not_finite, "a result is not finite")],
)
def test_a_failure_is_reported(operator, message, monkeypatch):
    leaf = torch.ones(1, 2, dtype=torch.float64)
    case = self_test.Case(operator, lambda input: input, {"input": leaf}, {})
    monkeypatch.setattr(self_test, "cases", lambda: [case])
    results = list(self_test.self_test("cpu"))
    assert [result.error for result in results] == [message] * 4
    assert not any(result.passed for result in results)


def test_the_setting_of_TF32_is_kept():
    before = torch.backends.cudnn.allow_tf32
    list(self_test.self_test("cpu"))
    assert torch.backends.cudnn.allow_tf32 == before
