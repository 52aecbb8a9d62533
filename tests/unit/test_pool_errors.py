"""Bad arguments, through torch and through gpuconv: the same exception class, or the same shape and dtype."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import gpuconv  # noqa: E402
from gpuconv.testing import forbid_aten  # noqa: E402

SHAPES = {1: (1, 2, 6), 2: (1, 2, 6, 6), 3: (1, 2, 6, 6, 6)}
NOT_INTS = ("2", None, 2.0, True, object(), (2, 2.0), (2, "a"), (2, None), 1j, np.float32(2))
TUPLES = ((2,), [2], (2, 2), (2, 2, 2), (2, 2, 2, 2), ())
VALUES = (0, -1, (0,), (0, 1), 1, 2, 3, 6, 7, 100, (1, 2), (1, 2, 3))
INTS = (*NOT_INTS, *TUPLES, *VALUES)
# Torch's own functions differ over these; max and average pools agree.
EXOTIC = (np.int64(2), np.uint8(2), torch.tensor(2), torch.tensor([2, 2]), np.array([2, 2]), range(2, 4))
FLAGS = (1, 0, None, "a", 1.0, True, False)
RANKS = [
    (), (6,), (6, 6), (2, 6, 6), (1, 2, 6, 6), (1, 2, 6, 6, 6), (1, 1, 1, 1, 6, 6), (0, 2, 6), (1, 0, 6), (1, 2, 0),
    (0, 6), (2, 0), (0, 0, 6), (0, 2, 6, 6), (1, 0, 6, 6), (1, 2, 0, 6), (1, 2, 6, 0), (0, 6, 6), (2, 0, 6),
    (0, 0, 6, 6), (0, 2, 6, 6, 6), (1, 0, 6, 6, 6), (1, 2, 0, 6, 6), (1, 2, 6, 6, 0), (0, 6, 6, 6), (2, 0, 6, 6),
    (0, 0, 6, 6, 6),
]  # fmt: skip
DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32",
    "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip


def outcome(fn, *args, **kwargs):
    """Shapes and dtypes of a result, or the class of the error."""
    try:
        result = fn(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    results = result if isinstance(result, tuple) else (result,)
    return [(tuple(r.shape), r.dtype) for r in results], ""


MISMATCHES: list[str] = []


@pytest.fixture(autouse=True)
def _no_mismatch():
    """Fail a test after it ran through all of its cases, with every mismatch."""
    MISMATCHES.clear()
    yield
    assert not MISMATCHES, "\n".join([f"{len(MISMATCHES)} mismatches", *MISMATCHES])


STUMBLED = (
    "numel: integer multiplication overflow",
    "mul(): argument 'other'",
    "strides should be greater than zero, but got stride: [-1",
)
"""What torch 2.11 says where it fell over arguments that newer releases refuse first, with another class."""


def check(name, *args, allow=(), **kwargs):
    """Compare, and note a mismatch. For the classes in `allow`, gpuconv may go on where torch raises."""
    expected, reason = outcome(getattr(F, name), *args, **kwargs)
    with forbid_aten():
        actual, message = outcome(getattr(gpuconv, name), *args, **kwargs)
    shown = ", ".join(
        f"{tuple(a.shape)} {a.dtype}" if isinstance(a, torch.Tensor) else repr(a) for a in (*args, *kwargs.items())
    )
    told = f"{name}({shown}): torch {expected} ({reason[:200]}), gpuconv {actual} ({message})"
    ahead = isinstance(actual, list) and expected in allow
    ahead = ahead or (isinstance(expected, type) and any(words in reason for words in STUMBLED))
    silent = isinstance(actual, type) and not (
        message.startswith(f"{name}: ") and ("must be" in message or "but got" in message)
    )
    if silent or (actual != expected and not ahead):
        MISMATCHES.append(told)


def inputs(ndim):
    return torch.arange(float(np.prod(SHAPES[ndim]))).reshape(SHAPES[ndim])


WINDOWED = [f"{family}_pool{ndim}d" for family in ("max", "avg") for ndim in (1, 2, 3)]


def ndim_of(name):
    return int(name[-2])


@pytest.mark.parametrize("name", WINDOWED)
def test_integers(name):
    names = ("kernel_size", "stride", "padding", "dilation")
    for argument, value in itertools.product(names if name.startswith("max") else names[:3], (*INTS, *EXOTIC)):
        options = {"kernel_size": 3, "stride": 2, argument: value}
        check(name, inputs(ndim_of(name)), **options)


@pytest.mark.parametrize("name", WINDOWED)
def test_combinations(name):
    """All kernels, strides, paddings and dilations of a small range, ceil mode too: shape or class."""
    rates = (1, 2, 3) if name.startswith("max") else (1,)
    x = inputs(ndim_of(name))
    for kernel, stride, padding, rate, ceil in itertools.product(
        (1, 2, 3, 4, 7), (1, 2, 5), (0, 1, 2, 3, 4), rates, (False, True)
    ):
        options = {"dilation": rate} if name.startswith("max") else {}
        check(name, x, kernel, stride, padding, ceil_mode=ceil, **options)


@pytest.mark.parametrize("name", WINDOWED)
def test_flags(name):
    x = inputs(ndim_of(name))
    flags = ("ceil_mode", "return_indices") if name.startswith("max") else ("ceil_mode", "count_include_pad")
    for flag, value in itertools.product(flags, FLAGS):
        check(name, x, 2, **{flag: value})
    if name in ("avg_pool2d", "avg_pool3d"):
        for divisor in (0, 1, -3, 2.0, "a", True, None, (2,), 1 << 40):
            check(name, x, 2, divisor_override=divisor)


@pytest.mark.parametrize("name", [f"lp_pool{ndim}d" for ndim in (1, 2, 3)])
def test_lp(name):
    x = inputs(ndim_of(name)) + 1
    for p in (0, 1, 2, 2.5, -1, float("nan"), float("inf"), -float("inf"), "2", None, (2,), [2.0], True, 0.0):
        check(name, x, p, 2)
    for p, value in itertools.product((2.0, float("inf")), (*NOT_INTS, *TUPLES, 0, -1, 1, 6, 7, (1, 0), (3, 2, 1))):
        check(name, x, p, value)
        check(name, x, p, 2, value)
    for value in FLAGS:
        check(name, x, 2.0, 2, ceil_mode=value)


@pytest.mark.parametrize("name", [f"adaptive_{kind}_pool{ndim}d" for kind in ("avg", "max") for ndim in (1, 2, 3)])
def test_adaptive(name):
    x = inputs(ndim_of(name))
    sizes = (
        *INTS, (None, 3), (3, None), (None, None), (None,), (None, 3, 2), (0, 2), (2, 0), (2, -1), (2, 2, 0), (1, 1),
        (2, 2, 2, 2, 2), (1, 1, 1), (1,), (None, "a"), (None, 2.0), [3, 4], [3, 4, 5],
    )  # fmt: skip
    for size in sizes:
        check(name, x, size)
        check(name, x[0], size)


POOLS = [
    *((name, (2,)) for name in WINDOWED),
    *((f"lp_pool{ndim}d", (2.0, 2)) for ndim in (1, 2, 3)),
    *((f"adaptive_{kind}_pool{ndim}d", (size,)) for kind in ("avg", "max") for ndim in (1, 2, 3) for size in (0, 1, 2)),
    *((f"fractional_max_pool{ndim}d", (2, 3)) for ndim in (2, 3)),
    ("unfold", (2,)),
]


@pytest.mark.parametrize(("name", "args"), POOLS)
def test_ranks_and_empty_axes(name, args):
    for shape in RANKS:
        if (
            name.startswith("adaptive_avg")
            and args == (1,)
            and len(shape) not in (ndim_of(name) + 1, ndim_of(name) + 2)
        ):
            continue  # torch takes the mean of an array of any rank there; gpuconv refuses it
        if name == "unfold" and len(shape) == 2 and 0 in shape:
            continue  # torch raises one of two classes, by which axis it looks at first
        check(name, torch.zeros(shape), *args)


@pytest.mark.parametrize(("name", "args"), POOLS)
def test_dtypes(name, args):
    shape = SHAPES[2 if name == "unfold" else ndim_of(name)]
    for dtype in DTYPES:
        if args == (0,) and dtype not in ("float16", "bfloat16", "float32", "float64"):
            continue  # torch looks at no element type before an empty result in some ranks; gpuconv always does
        x = torch.ones(shape).to(getattr(torch, dtype))
        # avg_pool3d takes 16-bit floats as torch does on CUDA, not on the CPU.
        wider = (NotImplementedError,) if name in ("avg_pool3d", "lp_pool3d") and "float16" in dtype else ()
        check(name, x, *args, allow=wider)
        if name.startswith("max_pool"):
            check(name, x, *args, return_indices=True)


@pytest.mark.parametrize("name", [name for name, _ in POOLS if "fractional" in name])
def test_fractional(name):
    ndim = ndim_of(name)
    x = inputs(ndim)
    for value in (*NOT_INTS, *TUPLES, 1, 2, 3, 4, 5, 6, 7, (1, 6), (2, 3), (6, 1, 1)):
        check(name, x, value, output_size=3)
        check(name, x, 2, output_size=value)
    for size in (0, -1, (0, 2), (0, 2, 2), (2, -1)):
        check(name, x, 2, output_size=size)
    for kernel in (0, -1):  # torch goes on with an empty window
        with pytest.raises(RuntimeError, match="kernel_size must be greater than zero"):
            getattr(gpuconv, name)(x, kernel, output_size=3)
    for ratio in (None, 0.5, (0.5, 0.5), (0.5, 0.5, 0.5), (0.5,), (0.9, 0.9), (0.9, 0.1, 0.3), (0.0, 0.5), (2, 2)):
        # torch's 2-D function cannot take the length of a single number, which its documentation allows.
        check(name, x, 2, output_ratio=ratio, allow=(TypeError,) if ratio == 0.5 else ())
    check(name, x, 2)
    check(name, x, 2, output_size=3, output_ratio=0.5)
    for shape in (
        (1, 2, ndim),
        (2, 2, ndim),
        (1, 1, ndim),
        (1, 3, ndim),
        (1, 2, 1),
        (1, 2, ndim + 1),
        (2, ndim),
        (0, 2, ndim),
    ):
        check(name, x, 2, output_size=3, _random_samples=torch.zeros(shape))
    check(name, x, 2, output_size=3, _random_samples=torch.zeros(1, 2, ndim, dtype=torch.float64))
    check(name, x[0], 2, output_size=3, _random_samples=torch.zeros(1, 2, ndim))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unpool(ndim):
    name = f"max_unpool{ndim}d"
    x = torch.ones(1, 2, *(3,) * ndim)
    where = torch.zeros(x.shape, dtype=torch.int64)
    for value in (2, 1, 3, (2,) * ndim, 0, -1, "2", 2.0, (2.0,) * ndim):
        check(name, x, where, value)
    for value in (1, 2, 3, (2,) * ndim, 0, -1, "2", 2.0):
        check(name, x, where, 2, value)
    for value in (0, 1, (1,) * ndim, -1, 3, 4, "1", 1.0):
        check(name, x, where, 2, 2, value)
    for size in (5, 6, 7, 4, 8, 100, 0, -1):
        check(name, x, where, 2, output_size=(size,) * ndim)
        check(name, x, where, 2, output_size=[1, 2, *(size,) * ndim])
    for size in ((), (6,) * (ndim + 1), (6,) * (ndim + 3), 6, ("a",) * ndim, (6.5,) * ndim):
        check(name, x, where, 2, output_size=size)
    for dtype in ("int32", "int16", "float32", "bool"):
        check(name, x, where.to(getattr(torch, dtype)), 2)
    for shape in ((1, 2), (2, *(3,) * ndim), (1, 2, *(4,) * ndim), (1, 1, *(3,) * ndim)):
        check(name, x, torch.zeros(shape, dtype=torch.int64), 2)
    for index in (-1, 6**ndim, 6**ndim - 1, 1 << 40):
        check(name, x, where + index, 2)
    for dtype in DTYPES:
        check(name, x.to(getattr(torch, dtype)), where, 2)
    for shape in RANKS:
        check(name, torch.zeros(shape), torch.zeros(shape, dtype=torch.int64), 2)


def test_unfold_and_fold():
    image, columns = torch.ones(1, 2, 6, 6), torch.ones(1, 8, 25)
    for value in (*NOT_INTS, *TUPLES, *VALUES):
        for argument in ("kernel_size", "dilation", "padding", "stride"):
            options = {"kernel_size": 2, argument: value}
            check("unfold", image, **options)
            check("fold", columns, 6, **options)
        check("fold", columns, value, 2)
    for shape in (*RANKS, (1, 8, 24), (1, 7, 25), (8, 25), (0, 8, 25), (0, 25), (8, 0)):
        check("fold", torch.zeros(shape), 6, 2)
    for dtype in DTYPES:
        check("fold", columns.to(getattr(torch, dtype)), 6, 2)


@pytest.mark.parametrize("value", [None, 1.0, [1.0], "x", object()])
def test_no_array(value):
    for name, args in POOLS:
        with pytest.raises(TypeError, match="input must be an array"):
            getattr(gpuconv, name)(value, *args)


def test_kinds_do_not_mix():
    with pytest.raises(TypeError, match="do not mix"):
        gpuconv.max_unpool1d(np.ones((1, 1, 2)), torch.zeros(1, 1, 2, dtype=torch.int64), 2)


@pytest.mark.parametrize(
    ("padding", "error"),
    [
        ("same", RuntimeError), ("full", TypeError), (((1, 1),), RuntimeError), (((2, 0), (0, 0)), RuntimeError),
        (((-1, 0), (0, 0)), RuntimeError), (((1, 1, 1), (0, 0)), RuntimeError), (((1, 1.0), (0, 0)), TypeError),
        (((1, 1), 1), RuntimeError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pool", [gpuconv.max_pool2d, gpuconv.avg_pool2d])
def test_paddings_beyond_torch(pool, padding, error):
    with pytest.raises(error, match=r"pool2d: padding must be .*but got"):
        pool(np.ones((1, 1, 6, 6)), 3, 2, padding)


def test_backward_shapes():
    x, dy = np.ones((1, 2, 6, 6)), np.ones((1, 2, 3, 3))
    where = np.zeros(dy.shape, np.int64)
    bad = [
        lambda: gpuconv.max_pool2d_with_indices_backward(dy[:, :, :2], x, 2, None, 0, 1, False, where),
        lambda: gpuconv.max_pool2d_with_indices_backward(dy, x, 2, None, 0, 1, False, where[:, :, :2]),
        lambda: gpuconv.max_pool2d_with_indices_backward(dy, x, 2, None, 0, 1, False, where + 36),
        lambda: gpuconv.max_pool2d_with_indices_backward(dy, x, 2, None, 0, 1, False, where.astype(np.int32)),
        lambda: gpuconv.avg_pool2d_backward(dy[0], x, 2),
        lambda: gpuconv.avg_pool2d_backward(dy.astype(np.float32), x, 2),
        lambda: gpuconv.adaptive_avg_pool2d_backward(dy[:, :1], x),
        lambda: gpuconv.adaptive_max_pool2d_backward(dy[0], x, where[0]),
        lambda: gpuconv.max_unpool2d_backward(x, dy, where + 36),
        lambda: gpuconv.lp_pool2d_backward(dy, x, 2, 3),
        lambda: gpuconv.fractional_max_pool2d_backward(dy, x, 2, 2, where),
    ]
    for call in bad:
        with pytest.raises(RuntimeError, match="must be"):
            call()


def test_forced_solver_never_falls_back():
    x = np.ones((1, 1, 4, 4))
    assert gpuconv.max_pool2d(x, 2, backend="numpy.pool.max.fprop").shape == (1, 1, 2, 2)
    with pytest.raises(gpuconv.NoSolverError, match=r"numpy\.pool\.avg\.fprop"):
        gpuconv.max_pool2d(x, 2, backend="numpy.pool.avg.fprop")


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_more_elements_than_64_bits_count(ndim):
    """The same class at once, and not after a list of every window."""
    x, where = torch.ones(2, 2, *(2,) * ndim), torch.zeros(2, 2, *(2,) * ndim, dtype=torch.int64)
    huge = 2**62 - 1
    for kind in ("avg", "max"):
        check(f"adaptive_{kind}_pool{ndim}d", x, huge if ndim == 1 else (huge, *(1,) * (ndim - 1)))
    check(f"max_unpool{ndim}d", x, where, 2**62 // 3)
    if ndim == 2:
        check("fold", torch.ones(1, 4, 1), (2**62, 8), 2, stride=(2**62, 8))
        with pytest.raises(RuntimeError, match="fewer than"):  # torch's product wraps around
            gpuconv.unfold(x, 2, padding=2**61)


@pytest.mark.parametrize("name", [f"adaptive_{kind}_pool{ndim}d" for kind in ("avg", "max") for ndim in (1, 2, 3)])
def test_gradients_of_adaptive_pools_without_outputs(name):
    """Torch refuses these where they are taken, and takes those of an empty batch."""
    x = torch.ones(SHAPES[ndim_of(name)], requires_grad=True)
    for size in (0, 2):
        for array in (x, x[0], x[:0], x[:, :0]):
            fits = [outcome(getattr(module, name), array, size)[1] == "" for module in (F, gpuconv)]
            assert fits[0] == fits[1]
            if not fits[0]:
                continue
            expected, actual = (
                outcome(torch.autograd.grad, getattr(module, name)(array, size).sum(), x)[0] for module in (F, gpuconv)
            )
            assert actual == expected, (size, array.shape)
    dy, where = torch.ones(1, 2, *(0,) * ndim_of(name)), torch.zeros(1, 2, *(0,) * ndim_of(name), dtype=torch.int64)
    with pytest.raises(RuntimeError, match="non-empty"):
        getattr(gpuconv, f"{name}_backward")(dy, x.detach(), *((where,) if "max" in name else ()))


def test_numbers_of_numpy():
    """NumPy's scalars are numbers wherever Python's are, in the gradients too."""
    x = np.linspace(0, 1, 72).reshape(1, 2, 6, 6)
    for p in (np.float32(2), np.int64(2)):
        y = gpuconv.lp_pool2d(x, p, 2)
        np.testing.assert_array_equal(y, gpuconv.lp_pool2d(x, 2, 2))
        np.testing.assert_array_equal(gpuconv.lp_pool2d_backward(y, x, p, 2), gpuconv.lp_pool2d_backward(y, x, 2, 2))
    for ratio in (np.float32(0.5), np.float64(0.5), np.int64(1)):
        check("fractional_max_pool2d", torch.ones(1, 2, 6, 6), 1, output_ratio=(ratio, 0.5))
