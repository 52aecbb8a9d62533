"""The pooling operators of ``torch.library``: schema, fake kernels, derivatives, layouts, autocast."""

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import gpuconv
import gpuconv.ops.conv  # registers the operators
from gpuconv.ops.pool_fake import AS_INPUT, Form
from gpuconv.ops.pool_library import OPERATORS
from gpuconv.testing import forbid_aten

FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"


def tensor(*shape: int, last: bool = False, grad: bool = True) -> torch.Tensor:
    values = torch.randperm(torch.Size(shape).numel()).double().reshape(shape) / 8 + 0.25
    if last:
        values = values.moveaxis(1, -1).contiguous().moveaxis(-1, 1)
    return values.requires_grad_(grad)


def form(pool: str, ndim: int, size: tuple[int, ...] = (), **changes: Any) -> Form:
    ones, zeros = (1,) * ndim, (0,) * ndim
    if pool in ("max", "avg", "lp"):
        plain = Form(pool, (3, 2, 2)[:ndim], (2,) * ndim, ones, zeros, ones, size, False, True, None, 2.0, False,
                     False, AS_INPUT, None)  # fmt: skip
    else:
        kernel = (2,) * ndim if pool == "fractional_max" else ones
        plain = Form(pool, kernel, ones, zeros, zeros, ones, size, False, True, None, 0.0, False, False, AS_INPUT, None)
    return plain._replace(**changes)


def operator_cases(last: bool) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Yield (id, operator, arguments)."""
    for ndim in (1, 2, 3):
        size, out = (5, 4, 6)[:ndim], (3, 2, 3)[:ndim]
        x = tensor(2, 3, *size, last=last)
        fmt = "channels_last" if last else "contiguous"
        for pool, of in (("avg", ()), ("adaptive_avg", out)):
            y = OPERATORS["avg_pool"](x.detach(), *form(pool, ndim, of))
            yield f"{pool}{ndim}", "avg_pool", (x, *form(pool, ndim, of))
            dy = y.clone().requires_grad_()
            yield f"{pool}{ndim} backward", "avg_pool_backward", (dy, *form(pool, ndim, size, format=fmt))
        for pool, of, offsets in itertools.product(("max", "adaptive_max"), ((), out), (False, True)):
            if bool(of) != (pool == "adaptive_max"):
                continue
            args = form(pool, ndim, of, offsets=offsets)
            name = f"{pool}{ndim}{' offsets' if offsets else ''}"
            yield name, "max_pool_with_indices", (x, None, *args)
            y, indices = OPERATORS["max_pool_with_indices"](x.detach(), None, *args)
            dy = y.clone().requires_grad_()
            back = form(pool, ndim, size, offsets=offsets, format=fmt)
            yield f"{name} backward", "max_pool_backward", (dy, indices, None, *back)
            yield f"{name} gather", "max_pool_gather", (x, indices, None, *args)
            if not offsets:
                yield f"{name} values", "max_pool", (x, *args)
        yield f"lp{ndim}", "lp_pool", (x, *form("lp", ndim))
        y = OPERATORS["lp_pool"](x.detach(), *form("lp", ndim))
        yield f"lp{ndim} backward", "lp_pool_backward", (y.clone().requires_grad_(), x, *form("lp", ndim))
        small = tensor(2, 3, *out, last=last)
        where = torch.arange(small[0, 0].numel()).reshape(out).expand(2, 3, *out).clone()
        yield f"unpool{ndim}", "max_unpool", (small, where, *form("max_unpool", ndim, size))
        yield f"unpool{ndim} backward", "max_unpool_backward", (x, where, *form("max_unpool", ndim, out))
    columns = {"kernel": (2, 3), "stride": (1, 2), "pad_lo": (1, 0), "pad_hi": (1, 0), "format": "contiguous"}
    x = tensor(2, 3, 5, 4, last=last)
    yield "unfold", "unfold", (x, *form("unfold", 2, **columns))
    y = OPERATORS["unfold"](x.detach(), *form("unfold", 2, **columns))
    y = y.transpose(1, 2).contiguous().transpose(1, 2) if last else y
    yield "fold", "fold", (y.clone().requires_grad_(), *form("fold", 2, (5, 4), **columns))
    for ndim in (2, 3):
        x, samples = tensor(2, 3, *(5, 4, 6)[:ndim], last=last), torch.rand(2, 3, ndim, dtype=torch.float64)
        args = form("fractional_max", ndim, (2,) * ndim, format="contiguous")
        yield f"fractional{ndim}", "max_pool_with_indices", (x, samples, *args)
        args = args._replace(offsets=True)
        yield f"fractional{ndim} offsets", "max_pool_with_indices", (x, samples, *args)
        y, indices = OPERATORS["max_pool_with_indices"](x.detach(), samples, *args)
        dy, back = y.clone().requires_grad_(), args._replace(size=tuple(x.shape[2:]))
        yield f"fractional{ndim} offsets backward", "max_pool_backward", (dy, indices, samples, *back)
        yield f"fractional{ndim} offsets gather", "max_pool_gather", (x, indices, samples, *args)


CASES = {f"{name} {'channels-last' if last else 'contiguous'}": (op, args) for last in (False, True)
         for name, op, args in operator_cases(last)}  # fmt: skip


HALF = len(CASES) // 2
CHECKED = [case for place, case in enumerate(CASES) if FULL or place % HALF % 2 == place // HALF]


@pytest.mark.parametrize("case", CHECKED)
def test_opcheck(case: str) -> None:
    """The gate takes each case in one of its two layouts, in turn."""
    name, args = CASES[case]
    torch.library.opcheck(OPERATORS[name], args)


def test_every_operator_is_checked() -> None:
    assert {CASES[case][0] for case in CHECKED} == set(OPERATORS)


FAMILIES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("max_pool", (3, 2, 1), {}),
    ("max_pool", (3, 2, 1), {"ceil_mode": True, "return_indices": True}),
    ("max_pool", (2, 1, "same"), {}),
    ("avg_pool", (3, 2, 1), {}),
    ("avg_pool", (3, 2, "same_upper"), {"dilation": 2}),
    ("lp_pool", (2, 3, 2), {}),
    ("lp_pool", (float("inf"), 3, 2), {}),
    ("adaptive_avg_pool", (2,), {}),
    ("adaptive_max_pool", (3, True), {}),
    ("fractional_max_pool", (2, 2), {"return_indices": True}),
]
SHAPES = {1: [(2, 3, 9), (3, 9), (2, 1, 9)], 2: [(2, 3, 8, 9), (3, 8, 9), (2, 1, 8, 9), (0, 3, 8, 9), (2, 3, 8, 3)],
          3: [(2, 3, 7, 8, 6), (3, 7, 8, 6)]}  # fmt: skip


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_fake_and_meta_results_have_the_layout_of_real_ones(ndim: int) -> None:
    for (family, args, kwargs), shape, last in itertools.product(FAMILIES, SHAPES[ndim], (False, True)):
        if family == "fractional_max_pool" and (ndim == 1 or 3 in shape[2:]):
            continue
        fn, x = getattr(gpuconv, f"{family}{ndim}d"), tensor(*shape, grad=False)
        x = x.moveaxis(-ndim - 1, -1).contiguous().moveaxis(-1, -ndim - 1) if last else x
        real = fn(x, *args, **kwargs)
        with FakeTensorMode() as mode:
            fake = fn(mode.from_tensor(x), *args, **kwargs)
        meta = fn(x.to("meta"), *args, **kwargs)
        with forbid_aten():
            operator = fn(x, *args, **kwargs)
        for results in (fake, meta, operator):
            pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in (results, real)), strict=True)
            for found, expected in pairs:
                assert (found.shape, found.stride(), found.dtype) == (
                    expected.shape, expected.stride(), expected.dtype,
                ), (family, args, kwargs, shape, last)  # fmt: skip
        assert (meta[0] if isinstance(meta, tuple) else meta).is_meta


def test_unpool_layouts() -> None:
    for ndim, last in itertools.product((1, 2, 3), (False, True)):
        x = tensor(2, 3, *(4, 3, 5)[:ndim], last=last, grad=False)
        where = torch.zeros(x.shape, dtype=torch.int64)
        fn = getattr(gpuconv, f"max_unpool{ndim}d")
        real, meta = fn(x, where, 2), fn(x.to("meta"), where.to("meta"), 2)
        assert (real.shape, real.stride()) == (meta.shape, meta.stride())


def test_operators_refuse_what_does_not_fit() -> None:
    """Called directly, with and without values: sizes, dtypes, pools and backends that are not possible."""
    x, ones = torch.zeros(2, 3, 5, 4, dtype=torch.float64), torch.zeros(2, 3, 3, 2, dtype=torch.float64)
    where, back = torch.zeros(2, 3, 3, 2, dtype=torch.int64), form("max", 2, (5, 4))
    wrong: list[tuple[type[Exception], str, tuple[Any, ...]]] = [
        (ValueError, "avg_pool", (x, *form("max", 2))),
        (ValueError, "avg_pool", (x, *form("avg", 2, backend="cudnn"))),
        (NotImplementedError, "avg_pool", (x.bool(), *form("avg", 2))),
        (RuntimeError, "avg_pool", (x[0], *form("avg", 2))),
        (RuntimeError, "avg_pool", (x, *form("avg", 2, stride=(0, 1)))),
        (RuntimeError, "avg_pool", (x, *form("avg", 2, stride=(1,)))),
        (RuntimeError, "avg_pool", (x, *form("avg", 2, kernel=(9, 9)))),
        (RuntimeError, "avg_pool", (x, *form("avg", 2, pad_lo=(-1, 0)))),
        (RuntimeError, "avg_pool_backward", (ones, *form("avg", 2, (9, 4)))),
        (RuntimeError, "max_pool_with_indices", (x, None, *form("fractional_max", 2, (2, 2)))),
        (RuntimeError, "max_pool_backward", (ones, where[:1], None, *back)),
        (RuntimeError, "max_pool_backward", (ones, where.int(), None, *back)),
        (RuntimeError, "max_pool_backward", (ones, where, None, *back._replace(offsets=True))),
        (RuntimeError, "max_pool_gather", (x, where[:, :2], None, *form("max", 2))),
        (RuntimeError, "lp_pool_backward", (ones[:1], x, *form("lp", 2))),
        (RuntimeError, "max_unpool", (ones, where.int(), *form("max_unpool", 2, (5, 4)))),
        (RuntimeError, "max_unpool_backward", (x, where, *form("max_unpool", 2, (3, 3)))),
    ]
    for error, name, args in wrong:
        for device in ("cpu", "meta"):
            moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
            with pytest.raises(error):
                OPERATORS[name](*moved)


def test_a_subclass_stays_one() -> None:
    class Tagged(torch.Tensor):
        pass

    x = tensor(1, 2, 5, 5, grad=False)
    y, indices = gpuconv.max_pool2d(x.as_subclass(Tagged), 2, return_indices=True)
    assert type(y) is type(indices) is Tagged
    torch.testing.assert_close(y.as_subclass(torch.Tensor), gpuconv.max_pool2d(x, 2))


def test_captured_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing compiles, the operator gets what use_backend forces; called directly, it reads the environment."""
    x = tensor(1, 2, 5, 5, grad=False)
    with gpuconv.use_backend("cupy"), forbid_aten(), pytest.raises(gpuconv.NoSolverError):
        gpuconv.max_pool2d(x, 2)
    with gpuconv.use_backend("cupy"):
        OPERATORS["max_pool"](x, *form("max", 2))
    monkeypatch.setenv("GPUCONV_BACKEND", "cupy")
    with pytest.raises(gpuconv.NoSolverError):
        OPERATORS["max_pool"](x, *form("max", 2))


AUTOCAST = [
    *FAMILIES[:1],
    *FAMILIES[3:4],
    *FAMILIES[5:8],
    ("max_pool", (2,), {"return_indices": True}),
    ("adaptive_max_pool", (3,), {}),
    ("fractional_max_pool", (2, 2), {}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_autocast(dtype: torch.dtype, grad: bool) -> None:
    """Result types are torch's in every tier: most pools run as they are, some in float32."""
    for (family, args, kwargs), ndim in itertools.product(AUTOCAST, (1, 2, 3)):
        if family == "fractional_max_pool" and ndim == 1:
            continue
        x = tensor(1, 2, *(6, 7, 6)[:ndim], grad=False).to(dtype).requires_grad_(grad)
        name = f"{family}{ndim}d"
        with torch.autocast("cpu", torch.bfloat16):
            theirs, ours = getattr(F, name)(x, *args, **kwargs), getattr(gpuconv, name)(x, *args, **kwargs)
            with forbid_aten():
                operator = getattr(gpuconv, name)(x, *args, **kwargs)
        if kwargs.get("return_indices"):
            (theirs, _), (ours, _), (operator, _) = theirs, ours, operator
        assert ours.dtype is operator.dtype is theirs.dtype, (name, args)
        if grad:
            (dx,) = torch.autograd.grad(ours.sum(), x)
            assert dx.dtype is dtype
    x, where = torch.ones(1, 1, 2, 2, dtype=dtype), torch.arange(4).reshape(1, 1, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert gpuconv.max_unpool2d(x, where, 2).dtype is F.max_unpool2d(x, where, 2).dtype
        assert (
            OPERATORS["max_unpool"](x, where, *form("max_unpool", 2, (4, 4))).dtype is F.max_unpool2d(x, where, 2).dtype
        )
        assert OPERATORS["max_pool"](x, *form("max", 2)).dtype is dtype
