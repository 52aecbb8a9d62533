"""PyTorch's own samples and mistakes (OpInfo) through gpuconv, with every aten convolution forbidden.

OpInfo has error inputs for ``conv`` and none for ``conv_transpose``: a list for those is here, compared with torch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conv_samples import NAMES, Arguments, check_with_gradients, op_info, samples, tensor
from referee import check_against

import gpuconv
from gpuconv.testing import forbid_aten

CONVS = [name for name in NAMES if "transpose" not in name]
TRANSPOSED = [name for name in NAMES if "transpose" in name]
DTYPES = (
    torch.float32, torch.float64, torch.complex64, torch.complex128, torch.int64, torch.bfloat16, torch.float16,
)  # fmt: skip


def products(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return how many products are summed into one output."""
    weight = args[1]
    return weight[:, 0].numel() // kwargs.get("groups", 1) if "transpose" in name else weight[0].numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_samples(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    seen = 0
    for args, kwargs in samples(name, dtype):
        with forbid_aten():
            ours = getattr(gpuconv, name)(*args, **kwargs, backend="numpy")
        theirs = getattr(torch.nn.functional, name)
        if dtype in (torch.float64, torch.complex128, torch.int64):
            torch.testing.assert_close(ours, theirs(*args, **kwargs))
        check_against(theirs, ours, args, kwargs, products(name, args, kwargs) + 1)
        seen += 1
    assert seen >= 8


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_samples(name: str, dtype: torch.dtype) -> None:
    """Results and first derivatives by every tensor, within the tolerance rule."""
    torch.manual_seed(0)
    for args, kwargs in samples(name, dtype):
        check_with_gradients(name, args, kwargs, "numpy")


def raised(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> type[Exception] | None:
    try:
        fn(*args, **kwargs)
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize("name", CONVS)
def test_error_inputs(name: str) -> None:
    cases = list(op_info(name).error_inputs("cpu"))
    assert len(cases) == 10
    for case in cases:
        args, kwargs = (case.sample_input.input, *case.sample_input.args), case.sample_input.kwargs
        theirs = raised(getattr(torch.nn.functional, name), args, kwargs)
        assert theirs is case.error_type
        assert raised(getattr(gpuconv, name), args, kwargs) is theirs, f"{case.error_regex}: {kwargs}"


def transposed_errors(ndim: int) -> Iterator[tuple[str, Arguments]]:
    """Yield (what is wrong, arguments)."""
    x, w, b = tensor(torch.float32, 1, 4, *(5,) * ndim), tensor(torch.float32, 4, 2, *(3,) * ndim), torch.zeros(2)
    wrong_length = (1,) * (ndim + 1)
    for argument in ("stride", "dilation", "groups"):
        yield f"{argument} zero", ((x, w, b), {argument: 0})
        yield f"{argument} negative", ((x, w, b), {argument: -1})
        yield f"{argument} a float", ((x, w, b), {argument: 1.5})
    for argument in ("padding", "output_padding"):
        yield f"{argument} negative", ((x, w, b), {argument: -1})
        yield f"{argument} a float", ((x, w, b), {argument: 0.5})
        yield f"{argument} of wrong length", ((x, w, b), {argument: wrong_length})
    yield "stride of wrong length", ((x, w, b), {"stride": wrong_length})
    yield "dilation of wrong length", ((x, w, b), {"dilation": wrong_length})
    yield "padding a string", ((x, w, b), {"padding": "same"})
    yield "output_padding as large as stride and dilation", ((x, w, b), {"output_padding": 1})
    yield "output_padding as large as stride", ((x, w, b), {"stride": 2, "output_padding": 2})
    yield "output_padding as large as dilation", ((x, w, b), {"dilation": 3, "output_padding": 3})
    yield "groups do not divide", ((x, w, b), {"groups": 3})
    yield "groups larger than the weight", ((x, w, b), {"groups": 8})
    yield "channels do not fit", ((x[:, :3], w, b), {})
    yield "bias of wrong length", ((x, w, torch.zeros(3)), {})
    yield "bias 2-D", ((x, w, torch.zeros(2, 1)), {})
    yield "dtypes differ", ((x, w.double(), b), {})
    yield "padding larger than the output", ((x, w, b), {"padding": 4})
    yield "input of too few axes", ((x[0, 0], w, b), {})
    yield "input of too many axes", ((x[None], w, b), {})
    yield "weight of too few axes", ((x, w[0], b), {})
    yield "weight of too many axes", ((x, w[None], b), {})
    yield "empty axis", ((x[..., :0], w, b), {})
    yield "no kernel", ((x, w[..., :0], b), {})
    yield "no output channels", ((x, w[:, :0], None), {})
    yield "no input channels", ((x[:, :0], w[:0], b), {})
    yield "integers of 32 bits", ((x.int(), w.int(), b.int()), {})
    yield "booleans", ((x.bool(), w.bool(), b.bool()), {})
    yield "no weight", ((x, None, b), {})


@pytest.mark.parametrize("name", TRANSPOSED)
def test_error_inputs_of_transposed(name: str) -> None:
    for mistake, (args, kwargs) in transposed_errors(int(name[-2])):
        theirs = raised(getattr(torch.nn.functional, name), args, kwargs)
        assert theirs is not None, f"{mistake}: torch accepts it"
        assert raised(getattr(gpuconv, name), args, kwargs) is theirs, f"{mistake}: torch raises {theirs.__name__}"


@pytest.mark.parametrize("name", NAMES)
def test_stricter_than_torch(name: str) -> None:
    """torch's CPU code takes these and reads memory that holds no values, or mixes types that its CUDA code refuses."""
    ndim = int(name[-2])
    x, w, b = tensor(torch.float32, 1, 2, *(5,) * ndim), tensor(torch.float32, 2, 2, *(3,) * ndim), torch.zeros(2)
    for args in ((x, w.to("meta"), b), (x, w, b.to("meta"))):
        assert raised(getattr(torch.nn.functional, name), args, {}) is None
        assert raised(getattr(gpuconv, name), args, {}) is RuntimeError
    if name in ("conv_transpose1d", "conv_transpose2d"):
        assert raised(getattr(torch.nn.functional, name), (x, w, b.double()), {}) is None
        assert raised(getattr(gpuconv, name), (x, w, b.double()), {}) is RuntimeError
