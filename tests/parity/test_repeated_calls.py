"""Repeated calls of every function on host arrays: the first answer, bit for bit, and torch's.

The gate draws one call of each function for each kind of array, ``GPUCONV_TEST_FULL=1`` ten.
"""

from __future__ import annotations

import os
import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest
from composed_calls import COMPOSED

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from referee import check_against  # noqa: E402
from repeated_calls import LAYOUTS, NUMPY_LAYOUTS, TORCH_SETTINGS, Answer, Drawn, check, drawn, functions  # noqa: E402

import gpuconv  # noqa: E402
from gpuconv import record_problems  # noqa: E402
from gpuconv.dispatch.plan_cache import CACHE  # noqa: E402

DRAWS = range(10 if os.environ.get("GPUCONV_TEST_FULL") == "1" else 1)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Show an array as a tensor, in the same memory unless torch cannot."""
    if not array.dtype.isnative or min(array.strides, default=0) < 0:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that may not be written to
        return torch.from_numpy(array)


def _torch_s(call: Drawn) -> Any:
    """Return torch's function of a call and its arguments as it takes them, or None where it has none."""
    name, given = call.function, dict(call.arguments)
    extras = {"padding_mode": "zeros", "activation": None}
    if any(given.pop(extra, default) != default for extra, default in extras.items()):
        return None
    given = {key: as_tensor(value) if isinstance(value, np.ndarray) else value for key, value in given.items()}
    if "lp_pool" in name and given.get("padding") == 0:
        del given["padding"]  # which torch has not
    if name.endswith("_grad"):
        rest = [given.pop(key) for key in (("input_size", "weight") if "input" in name else ("input", "weight_size"))]
        grad = getattr(torch.nn.grad, name.replace("_grad", ""))
        return (lambda *tensors, **options: grad(*rest, *tensors, **options)), given
    if not name.endswith("_backward"):
        ours = any(word in name for word in COMPOSED)
        return None if ours else (getattr(F, name), given)
    if "indices" in given and ("fractional" in name or "unpool" in name):
        return None
    grad, x = given.pop("grad_output"), given.pop("input")
    indices = given.pop("indices", None)
    if indices is not None:
        given["return_indices"] = True
    if "adaptive" in name:
        given["output_size"] = tuple(grad.shape[x.dim() - grad.dim() - int(name[name.index("d_") - 1]) :])
    forward = getattr(F, name.removesuffix("_backward").removesuffix("_with_indices"))

    def gradient(**options: Any) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        y, where = forward(leaf, **options) if indices is not None else (forward(leaf, **options), None)
        if y.shape != grad.shape or (where is not None and not torch.equal(where, indices)):
            raise RuntimeError("the gradient or the indices are not of this call")
        return torch.autograd.grad(y, leaf, grad)[0]

    return gradient, given


def _tensors(result: Any) -> tuple[torch.Tensor, ...]:
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(as_tensor(part) if isinstance(part, np.ndarray) else part for part in parts)


def _agrees(call: Drawn, ours: Answer) -> bool:
    """Compare an answer with torch's; tell whether there was one."""
    arrays = [value for value in call.arguments.values() if isinstance(value, np.ndarray)]
    floats = [value for value in arrays if value.dtype.kind == "f"]
    known = ours.held is not None and not call.setting and all(value.dtype.itemsize > 2 for value in floats)
    found = _torch_s(call) if known and all(np.isfinite(value).all() for value in floats) else None
    if found is None:
        return False
    function, arguments = found
    try:
        expected = function(**arguments)
    except Exception:  # what torch refuses and we do not, other tests are about
        return False
    if call.function.startswith("conv") and not call.function.endswith("_grad"):
        names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
        options = {name: value for name, value in arguments.items() if name not in names}

        def positional(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
            result: torch.Tensor = function(**dict(zip(names, tensors)), **options)
            return result

        with record_problems() as problems:
            call.run(lambda array: array)
        (held,) = _tensors(ours.held)
        tensors = tuple(arguments[name] for name in names)
        check_against(positional, held, tensors, options, problems[0].reduction_length)
        return True
    for part, wanted in zip(_tensors(ours.held), _tensors(expected), strict=True):
        # Powers of numbers below 0 are NaN, and a power enlarges what rounding did to its base as often as it says.
        powers = {"rtol": 1e-5, "atol": 1e-5} if "lp_pool" in call.function and part.dtype is torch.float32 else {}
        torch.testing.assert_close(part, wanted, equal_nan=True, **powers)
    return True


KINDS = {
    "numpy": (lambda array: array, NUMPY_LAYOUTS, None),
    "torch": (as_tensor, LAYOUTS, TORCH_SETTINGS),
}


@pytest.mark.parametrize(("kind", "function"), list(product(KINDS, functions())))
def test_every_call_answers_as_the_first_did(kind: str, function: str) -> None:
    build, layouts, settings = KINDS[kind]
    agreed = answered = 0
    for draw in DRAWS:
        rng = np.random.default_rng([draw, *map(ord, function + kind)])
        answers = check(rng, drawn(rng, function), build, layouts, 6, *([settings] if settings else []))
        answered += answers[0][1].held is not None
        agreed += sum(_agrees(each, found) for each, found in answers)
    assert 2 * answered > len(DRAWS), "most calls that were drawn are refused"
    unanswered = "backward" in function and ("fractional" in function or "unpool" in function)
    unanswered = unanswered or any(word in function for word in COMPOSED)  # torch has none
    assert agreed or len(DRAWS) == 1 or unanswered


WINDOWS = {
    "leaves out the end": ((3, 3), {"kernel_size": 2}),
    "leaves out one column": ((4, 5), {"kernel_size": 4}),
    "of an image": ((3, 3), {"kernel_size": 2, "stride": 3}),
    "hangs over the end": ((3, 3), {"kernel_size": 2, "stride": 3, "ceil_mode": True}),
    "begins in the padding": ((2, 2), {"kernel_size": 3, "stride": 3, "padding": 1}),
    "padding and a part": ((3, 3), {"kernel_size": 3, "stride": 4, "padding": 1}),
    "is the plane": ((3, 4), {"kernel_size": (3, 4)}),
    "is more than the plane": ((2, 2), {"kernel_size": 4, "padding": 1}),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("function", ["avg_pool2d", "max_pool2d"])
@pytest.mark.parametrize("batched", [True, False])
def test_one_window(function: str, name: str, batched: bool) -> None:
    """A pool with one window is a global pool only if that is the whole plane."""
    size, options = WINDOWS[name]
    x = np.random.default_rng(0).standard_normal((*((2,) if batched else ()), 3, *size)).astype(np.float32)
    expected = getattr(F, function)(torch.from_numpy(x), **options)
    for _ in range(3):
        torch.testing.assert_close(torch.from_numpy(getattr(gpuconv, function)(x, **options)), expected)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_and_nans_of_either_sign(rows: int, dtype: Any) -> None:
    """Which of equal maxima a global pool takes shows in its sign: the same in every call."""
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 20, (40, 2)):
        for numbers in ([0.0, -0.0], [np.nan, -np.nan, 0.0]):
            x = rng.choice(numbers, (rows, 1, height, width)).astype(dtype)
            CACHE.clear()
            first, *others = [gpuconv.adaptive_max_pool2d(x, 1).tobytes() for _ in range(3)]
            assert others == [first] * 2


@pytest.mark.parametrize("function", ["adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d"])
def test_who_writes_to_a_result_changes_no_other(function: str) -> None:
    """Not what was returned before, not what comes next, and not what is kept for the next."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    size = 4 if function == "avg_pool2d" else 1
    expected = getattr(F, function)(torch.from_numpy(x), size).numpy()
    CACHE.clear()
    for _ in range(4):
        found = getattr(gpuconv, function)(x, size)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        found.fill(-1)


def test_a_first_call_that_fails_is_not_remembered_as_one_that_works() -> None:
    x, grad = np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2))
    beyond = np.full((1, 1, 2, 2), 99)
    right = gpuconv.max_pool2d(x, 2, return_indices=True)[1]
    for indices, fails in ((beyond, True), (right, False), (beyond, True), (right, False)):
        arguments = (grad, indices, 2)
        if fails:
            with pytest.raises(RuntimeError, match="max_unpool2d"):
                gpuconv.max_unpool2d(*arguments)
        else:
            assert gpuconv.max_unpool2d(*arguments).sum() == 4
