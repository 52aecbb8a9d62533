"""The ``torch.library`` operators: schema, fake kernels, derivatives and layouts, by torch's own check."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import gpuconv
import gpuconv.ops.conv  # registers the operators
from gpuconv.testing import forbid_aten

FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"


def tensor(*shape: int, last: bool = False, dtype: torch.dtype = torch.float64, grad: bool = True) -> torch.Tensor:
    values = torch.randn(shape, dtype=dtype)
    if last and len(shape) > 2:
        values = values.moveaxis(1, -1).contiguous().moveaxis(-1, 1)
    return values.requires_grad_(grad)


def operator_cases(last: bool) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Yield (id, operator, arguments)."""
    for ndim in (1, 2, 3):
        one, size, kernel = (1,) * ndim, (5, 4, 6)[:ndim], (3, 2, 2)[:ndim]
        stride, dilation = (2, 1, 1)[:ndim], (1, 2, 1)[:ndim]
        geometry = (stride, one, one, dilation, 2, "zeros")
        none = (None,) * 4
        x, w, b = tensor(2, 4, *size, last=last), tensor(6, 2, *kernel, last=last), tensor(6)
        y = gpuconv.__dict__[f"conv{ndim}d"](x, w, stride=stride, padding=1, dilation=dilation, groups=2).detach()
        dy = y.clone().requires_grad_()
        yield f"fprop{ndim}", "fprop", (x, w, b, None, None, None, *geometry, None, "fused", None, None)
        yield f"dgrad{ndim}", "dgrad", (dy, w, *none, size, *geometry, None, "fused", None, None, False)
        yield (
            f"transposed{ndim}",
            "dgrad",
            (dy, w, tensor(4), None, None, None, size, *geometry, None, "fused", None, None, True),
        )
        yield f"wgrad{ndim}", "wgrad", (x, dy, kernel, *geometry, None, None)
    geometry = ((1, 1), (1, 2), (0, 1), (1, 1), 1, "circular")
    x, w = tensor(2, 3, 5, 6, last=last), tensor(4, 3, 3, 3)
    epilogue = (tensor(4), tensor(4), tensor(4), tensor(2, 4, 4, 7, last=last))
    yield "fprop epilogue", "fprop", (x, w, *epilogue, *geometry, "gelu", "torch", "ieee", "numpy")
    geometry = ((2, 2), (1, 1), (1, 1), (1, 1), 1, "zeros")
    epilogue = (tensor(3), tensor(3), tensor(3), tensor(2, 3, 10, 11, last=last))
    dy = tensor(2, 4, 5, 6, last=last)
    yield "transposed epilogue", "dgrad", (dy, w, *epilogue, (10, 11), *geometry, "silu", "torch", None, None, True)


CASES = {f"{name} {'channels-last' if last else 'contiguous'}": (op, args) for last in (False, True)
         for name, op, args in operator_cases(last)}  # fmt: skip


HALF = len(CASES) // 2
CHECKED = [case for place, case in enumerate(CASES) if FULL or place % HALF % 2 == place // HALF]


@pytest.mark.parametrize("case", CHECKED)
def test_opcheck(case: str) -> None:
    """The gate takes each case in one of its two layouts, in turn."""
    name, args = CASES[case]
    torch.library.opcheck(getattr(torch.ops.gpuconv, name).default, args)


LAYOUTS = [
    # x, w, kwargs; for each, contiguous and channels-last
    ((2, 3, 5), (4, 3, 3), {}),
    ((3, 5), (4, 3, 3), {}),
    ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": "same_upper", "stride": 2}),
    ((3, 5, 6), (4, 3, 3, 3), {"padding": "causal"}),
    ((2, 1, 5, 6), (4, 1, 3, 3), {}),
    ((1, 4, 4, 1), (2, 4, 1, 1), {}),
    ((2, 3, 1, 1), (4, 3, 1, 1), {}),
    ((0, 3, 5, 6), (4, 3, 3, 3), {}),
    ((2, 0, 5, 6), (4, 0, 3, 3), {}),
    ((2, 4, 5, 6, 4), (4, 2, 3, 3, 3), {"groups": 2, "padding": ((1, 2), (0, 1), (2, 2))}),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "kwargs"), LAYOUTS, ids=str)
def test_fake_and_meta_results_have_the_layout_of_real_ones(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], kwargs: dict[str, Any]
) -> None:
    ndim = len(w_shape) - 2
    fn, transposed = getattr(gpuconv, f"conv{ndim}d"), getattr(gpuconv, f"conv_transpose{ndim}d")
    for x_last in (False, True):
        for w_last in (False, True):
            x, w = tensor(*x_shape, last=x_last, grad=False), tensor(*w_shape, last=w_last, grad=False)
            real = [fn(x, w, **kwargs)]
            calls = [lambda x, w, y: fn(x, w, **kwargs)]
            if 0 not in x_shape:
                real.append(transposed(real[0], w, groups=kwargs.get("groups", 1)))
                calls.append(lambda x, w, y: transposed(y, w, groups=kwargs.get("groups", 1)))
            with FakeTensorMode() as mode:
                fakes = [mode.from_tensor(t) for t in (x, w, real[0])]
                found = [call(*fakes) for call in calls]
            metas = [call(*(t.to("meta") for t in (x, w, real[0]))) for call in calls]
            for expected, fake, meta in zip(real, found, metas):
                for other in (fake, meta):
                    assert (other.shape, other.stride(), other.dtype) == (
                        expected.shape, expected.stride(), expected.dtype,
                    )  # fmt: skip
                assert meta.is_meta and fake.device == expected.device


def test_fakes_refuse_what_calls_refuse() -> None:
    x, w = torch.empty(1, 4, 5, 5, device="meta"), torch.empty(6, 4, 3, 3, device="meta")
    wrong: list[tuple[type[Exception], tuple[Any, ...], dict[str, Any]]] = [
        (RuntimeError, (x[:, :3], w), {}),
        (RuntimeError, (x, w.double()), {}),
        (RuntimeError, (x, w, torch.empty(5, device="meta")), {}),
        (RuntimeError, (x[..., :2], w), {}),
        (RuntimeError, (x, w), {"padding": 5, "padding_mode": "reflect"}),
        (RuntimeError, (x, w), {"groups": 3}),
        (RuntimeError, (x, w), {"stride": 0}),
        (RuntimeError, (x, w), {"residual": torch.empty(1, 6, 3, 4, device="meta")}),
        (RuntimeError, (x, w), {"scale": torch.empty(6, 1, device="meta")}),
        (RuntimeError, (x, torch.empty(6, 4, 3, 3)), {}),
        (NotImplementedError, (x.bool(), w.bool()), {}),
        (NotImplementedError, (x.int(), w.int()), {"activation": "relu"}),
        (ValueError, (x, w), {"padding_mode": "mirror"}),
        (ValueError, (x, w), {"activation": "mish"}),
        (ValueError, (x, w), {"precision": "fp8"}),
        (ValueError, (x, w), {"backend": "cudnn"}),
        (TypeError, (x, None), {}),
        (TypeError, (x, w), {"stride": 1.5}),
    ]
    for error, args, kwargs in wrong:
        with pytest.raises(error):
            gpuconv.conv2d(*args, **kwargs)


def test_a_subclass_stays_one() -> None:
    class Tagged(torch.Tensor):
        pass

    x, w = tensor(1, 2, 5, 5, grad=False), tensor(3, 2, 3, 3, grad=False)
    y = gpuconv.conv2d(x.as_subclass(Tagged), w)
    assert type(y) is Tagged
    torch.testing.assert_close(y.as_subclass(torch.Tensor), gpuconv.conv2d(x, w))


def test_captured_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing compiles, the operator gets what use_backend forces; called directly, it reads the environment."""
    x, w = tensor(1, 2, 5, 5, grad=False), tensor(3, 2, 3, 3, grad=False)
    with gpuconv.use_backend("triton"), forbid_aten(), pytest.raises(gpuconv.NoSolverError):
        gpuconv.conv2d(x, w)
    geometry = ((1, 1), (0, 0), (0, 0), (1, 1), 1, "zeros")
    arguments = (x, w, None, None, None, None, *geometry, None, "fused", None, None)
    with gpuconv.use_backend("triton"):
        torch.testing.assert_close(torch.ops.gpuconv.fprop(*arguments), gpuconv.conv2d(x, w, backend="numpy"))
    monkeypatch.setenv("GPUCONV_BACKEND", "triton")
    with pytest.raises(gpuconv.NoSolverError):
        torch.ops.gpuconv.fprop(*arguments)
