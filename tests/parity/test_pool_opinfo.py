"""Every sample and every error of torch's own operator database, for pooling, unfold and fold.

All samples of every operator run. OpInfo has no power pools and no fold: their lists are here. It has no errors for
unfold and the fractional pools: tests/unit/test_pool_errors.py has them.
"""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from opinfo import op_db  # noqa: E402

import gpuconv  # noqa: E402
from gpuconv.testing import forbid_aten  # noqa: E402

NAMES = (
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "fractional_max_pool2d", "fractional_max_pool3d",
    "max_pool1d", "max_pool2d", "max_pool3d", "max_unpool1d", "max_unpool2d", "max_unpool3d", "unfold",
)  # fmt: skip
OPS = [op for op in op_db if op.name.startswith("nn.functional.") and op.name.removeprefix("nn.functional.") in NAMES]


def ident(op):
    return op.name.removeprefix("nn.functional.") + ("-" + op.variant_test_name if op.variant_test_name else "")


def plain(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


def samples_of(op, dtype):
    torch.manual_seed(0)
    return list(op.sample_inputs("cpu", dtype))


def outcome(fn, *args, **kwargs):
    """The result of a call, or the class of its error."""
    try:
        return fn(*args, **kwargs)
    except Exception as error:
        return type(error)


def check_same(name, args, kwargs):
    torch.manual_seed(1)  # fractional pools draw samples
    expected = getattr(F, name)(*args, **kwargs)
    torch.manual_seed(1)
    with forbid_aten():  # which runs operators of torch.library
        actual = getattr(gpuconv, name)(*args, **kwargs)
    torch.testing.assert_close(actual, expected)
    torch.manual_seed(1)
    plain = getattr(gpuconv, name)(*args, **kwargs)
    torch.testing.assert_close(plain, actual, rtol=0, atol=0, check_stride=True)


def test_every_operator_is_found():
    assert sorted({op.name.removeprefix("nn.functional.") for op in OPS}) == sorted(NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op", OPS, ids=ident)
def test_samples(op, dtype, full):
    """Some lists are long: the gate takes some of each, others of each dtype."""
    samples = samples_of(op, dtype)
    assert samples
    if not full:
        step = max(len(samples) // 30, 1)
        samples = samples[int(dtype is torch.float64) % step :: step]
    for sample in samples:
        args = [plain(value) for value in (sample.input, *sample.args)]
        kwargs = {name: plain(value) for name, value in sample.kwargs.items()}
        check_same(op.name.removeprefix("nn.functional."), args, kwargs)


@pytest.mark.parametrize("op", [op for op in OPS if op.error_inputs_func is not None], ids=ident)
def test_errors(op):
    name = op.name.removeprefix("nn.functional.")
    errors = list(op.error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        args = [plain(value) for value in (sample.input, *sample.args)]
        kwargs = {key: plain(value) for key, value in sample.kwargs.items()}
        expected = outcome(getattr(F, name), *args, **kwargs)
        with forbid_aten():
            actual = outcome(getattr(gpuconv, name), *args, **kwargs)
        assert outcome(getattr(gpuconv, name), *args, **kwargs) is actual
        assert isinstance(expected, type) and issubclass(actual, expected), (args, kwargs, actual, expected)


def lp_samples(ndim):
    size = {1: (9,), 2: (9, 8), 3: (5, 6, 7)}[ndim]
    for p in (1, 2, 2.0, 3, 4, 0.5, -1.0, 2.7, float("inf"), -float("inf")):
        for kernel, stride, ceil in ((2, None, False), (3, 2, True), (4, 3, False), (3, 1, True), (1, 2, False)):
            for batched in (True, False):
                yield ((2, 3, *size) if batched else (3, *size)), p, kernel, stride, ceil


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_lp_samples(ndim, dtype):
    generator = torch.Generator().manual_seed(0)
    for shape, p, kernel, stride, ceil in lp_samples(ndim):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        x = x if p in (1, 2, 2.0, 4) or p in (float("inf"), -float("inf")) else x.abs() + 0.1
        x = x.to(dtype)
        fn = getattr(F, f"lp_pool{ndim}d")
        # torch rounds 16-bit powers and sums on the way (and has no avg_pool3d for them); we round once, at the end.
        wide = x.float() if dtype in (torch.float16, torch.bfloat16) else x
        expected = fn(wide, p, kernel, stride, ceil).to(dtype)
        with forbid_aten():
            actual = getattr(gpuconv, f"lp_pool{ndim}d")(x, p, kernel, stride, ceil)
        torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_lp_dtypes(ndim):
    """Integers, bool and 16-bit floats: equal class, or equal dtype and values."""
    size = (6,) * ndim
    for p in (2, 2.0, 3, 1, float("inf"), -float("inf"), 0, -1, -1.0, True):
        for dtype in ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "float32", "float64"):
            values = torch.arange(6**ndim).reshape(1, 1, *size) % 5 - int(dtype.startswith("int"))
            x = values.to(getattr(torch, dtype))
            expected = outcome(getattr(F, f"lp_pool{ndim}d"), x, p, 2)
            actual = outcome(getattr(gpuconv, f"lp_pool{ndim}d"), x, p, 2)
            if isinstance(expected, type):
                assert actual is expected, (p, dtype, actual, expected)
            else:
                torch.testing.assert_close(actual, expected, equal_nan=True, msg=f"{p} {dtype}")


FOLDS = [
    ((2, 12, 20), (5, 6), 2, {}),
    ((12, 20), (5, 6), (2, 2), {}),
    ((2, 12, 12), (4, 5), 2, {}),
    ((0, 12, 20), (5, 6), 2, {}),
    ((2, 18, 30), (5, 6), 3, {"padding": 1}),
    ((2, 18, 9), (5, 6), 3, {"padding": 1, "stride": 2}),
    ((1, 8, 6), (5, 4), 2, {"dilation": 2}),
    ((1, 8, 49), 8, 2, {}),
    ((1, 8, 16), [8, 8], [2, 2], {"stride": (2, 2)}),
]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "bool", "complex64", "int64"])
def test_fold_samples(dtype):
    for shape, size, kernel, options in FOLDS:
        x = torch.randn(shape).to(getattr(torch, dtype))
        expected = outcome(F.fold, x, size, kernel, **options)
        with forbid_aten():
            actual = outcome(gpuconv.fold, x, size, kernel, **options)
        if isinstance(expected, type):
            assert actual is expected, (shape, options)
        elif dtype in ("float16", "bfloat16"):  # torch adds in 16 bits
            torch.testing.assert_close(actual, F.fold(x.float(), size, kernel, **options).to(x.dtype))
        else:
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.ones(2, 2) @ torch.ones(2, 2),
        lambda: F.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)),
        lambda: F.max_pool1d(torch.ones(1, 1, 4), 2),
        lambda: F.max_pool2d(torch.ones(1, 1, 4, 4), 2),
        lambda: F.avg_pool3d(torch.ones(1, 1, 4, 4, 4), 2),
        lambda: F.adaptive_avg_pool2d(torch.ones(1, 1, 4, 4), 2),
        lambda: F.unfold(torch.ones(1, 1, 4, 4), 2),
        lambda: F.fold(torch.ones(1, 4, 9), 4, 2),
        lambda: torch.ones(4).unfold(0, 2, 1),
        lambda: torch.einsum("ij,jk->ik", torch.ones(2, 2), torch.ones(2, 2)),
        lambda: torch.dot(torch.ones(2), torch.ones(2)),
        lambda: F.max_unpool2d(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64), 2),
        lambda: F.lp_pool2d(torch.ones(1, 1, 4, 4), 2, 2),
        lambda: F.fractional_max_pool2d(torch.ones(1, 1, 4, 4), 2, 2),
        lambda: torch.ops.aten.max_pool2d_with_indices(torch.ones(1, 1, 4, 4), [2, 2]),
        lambda: torch.ops.aten.convolution(
            torch.ones(1, 1, 3), torch.ones(1, 1, 2), None, [1], [0], [1], False, [0], 1
        ),
    ],
)
def test_forbid_aten_bites(call):
    call()
    with forbid_aten(), pytest.raises(AssertionError, match="inside forbid_aten"):
        call()


def test_forbid_aten_lets_others_pass():
    with forbid_aten():
        assert (torch.ones(3) + 1).sum().item() == 6
