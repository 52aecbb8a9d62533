"""The kinds of array against torch: memory formats, strides, allocation, and what NumPy is shown."""

import itertools

import numpy as np
import pytest
import torch

import gpuconv
from gpuconv import arrays
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.normalize.common import memory_format

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
NUMPY, TORCH = arrays.kind_of(np.zeros(1)), arrays.kind_of(torch.zeros(1))


def torch_says_channels_last(x: torch.Tensor) -> bool:
    """Ask ``Tensor.suggest_memory_format``, which Python cannot call, through an operator that allocates by it."""
    y = torch.nn.functional.interpolate(x, size=(2,) * (x.ndim - 2), mode="nearest")
    contiguous = arrays.contiguous_strides(y.shape)
    assert y.stride() in (contiguous, arrays.channels_last_strides(y.shape))
    return y.stride() != contiguous


@pytest.mark.parametrize("rank", [4, 5])
def test_is_channels_last_as_torch_suggests(rank: int, rng: np.random.Generator) -> None:
    """Random sizes from 1 to 3 and strides that are permutations, ties, gaps and zeros."""
    base = torch.zeros(4096)
    found = [0, 0]
    for _ in range(4000):
        shape = tuple(rng.integers(1, 4, rank).tolist())
        order = rng.permutation(rank) if rng.random() < 0.5 else [*range(rank)]
        if rng.random() < 0.4:
            order = [0, *range(2, rank), 1]  # channels-last, to be disturbed below
        strides, step = [0] * rank, 1
        for axis in reversed(order):
            strides[axis] = step
            step *= shape[axis]
        for axis in range(rank):
            if rng.random() < 0.15:
                strides[axis] = int(rng.choice([0, 1, 2, 3, strides[axis] + 1, 2 * strides[axis]]))
        if sum((size - 1) * stride for size, stride in zip(shape, strides)) >= len(base):
            continue
        expected = torch_says_channels_last(base.as_strided(shape, strides))
        assert arrays.is_channels_last(shape, strides) == expected, (shape, strides)
        found[expected] += 1
    assert min(found) > 500


@pytest.mark.parametrize("rank", [4, 5])
def test_is_channels_last_of_empty_axes_and_units(rank: int) -> None:
    for shape in itertools.product((0, 1, 2), repeat=rank):
        for strides in (arrays.contiguous_strides(shape), arrays.channels_last_strides(shape)):
            expected = torch._prims_common.suggest_memory_format(torch.empty_strided(shape, strides))
            assert arrays.is_channels_last(shape, strides) == (expected is FORMATS[rank]), (shape, strides)


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_strides_are_those_that_torch_allocates(rank: int) -> None:
    for shape in itertools.product((0, 1, 2, 3), repeat=rank):
        assert arrays.contiguous_strides(shape) == torch.empty(shape).stride()
        if rank in FORMATS:
            expected = torch.empty(shape, memory_format=FORMATS[rank]).stride()
            assert arrays.channels_last_strides(shape) == expected
    assert arrays.channels_last_strides((2, 3, 5)) == torch.empty(2, 5, 3).transpose(1, 2).stride()


def test_unsqueezed_strides() -> None:
    for x in (torch.zeros(2, 3, 4), torch.zeros(4, 3, 2).permute(2, 1, 0), torch.zeros(2, 1, 4)[:, :, ::2]):
        for axis in range(4):
            assert arrays.unsqueezed_strides(x.shape, x.stride(), axis) == x.unsqueeze(axis).stride()


def test_1d_format_is_that_of_the_2d_array_of_height_1() -> None:
    assert memory_format((2, 3, 5), torch.zeros(2, 5, 3).transpose(1, 2).stride()) == CHANNELS_LAST
    assert memory_format((2, 3, 5), torch.zeros(2, 3, 5).stride()) == CONTIGUOUS
    assert memory_format((2, 1, 5), torch.zeros(2, 1, 5).stride()) == CONTIGUOUS


@pytest.mark.parametrize("fmt", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 3, 4, 5, 6), (0, 3, 4, 5), (2, 1, 4, 4), (1, 3, 1, 1)])
def test_empty(shape: tuple[int, ...], fmt: str) -> None:
    strides = arrays.channels_last_strides(shape) if fmt == CHANNELS_LAST else arrays.contiguous_strides(shape)
    ours = TORCH.empty(shape, "bfloat16", "cpu", fmt)
    assert (ours.dtype, tuple(ours.shape), ours.stride()) == (torch.bfloat16, shape, strides)
    theirs = NUMPY.empty(shape, "float16", "cpu", fmt)
    assert (theirs.dtype, theirs.shape) == (np.float16, shape)
    if 0 not in shape and 1 not in shape:
        assert NUMPY.strides(theirs) == strides


DTYPES = [
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_two_kinds_agree(dtype: str) -> None:
    x = np.zeros((2, 3, 4), dtype)[:, :, ::2]
    t = torch.zeros((2, 3, 4), dtype=getattr(torch, dtype))[:, :, ::2]
    for kind, array in ((NUMPY, x), (TORCH, t)):
        assert kind.owns(array)
        assert (kind.dtype(array), kind.device(array), kind.shape(array)) == (dtype, "cpu", (2, 3, 2))
        assert kind.strides(array) == (12, 4, 2)
        batched = kind.add_batch(array)
        assert kind.shape(batched) == (1, 2, 3, 2) and kind.shape(kind.drop_batch(batched)) == (2, 3, 2)
        shown = kind.to_numpy(array)
        shown[0, 1, 1] = 1
        assert array[0, 1, 1] == 1, "to_numpy must not copy"
    assert not NUMPY.owns(t) and not TORCH.owns(x)


def test_torch_views_that_numpy_cannot_show() -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    np.testing.assert_array_equal(TORCH.to_numpy(z.conj()), [1 - 2j, 3 + 4j])
    np.testing.assert_array_equal(TORCH.to_numpy(z.conj().imag), [-2, 4])
    assert z.conj().imag.is_neg()
    with torch.enable_grad():
        assert TORCH.to_numpy(torch.ones(2, requires_grad=True)).tolist() == [1, 1]


def test_bfloat16_is_shown_as_bits() -> None:
    t = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    shown = TORCH.to_numpy(t)
    assert (shown.dtype, shown.tolist()) == (np.uint16, [0x3F80, 0xC000])
    shown[0] = 0x4000
    assert t[0] == 2


def test_bfloat16_of_ml_dtypes_is_shown_as_bits() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes", reason="not run: ml_dtypes is not installed").bfloat16
    x = np.array([1.0, 5.0, -2.0], bfloat16)[::2]
    shown = NUMPY.to_numpy(x)
    assert (NUMPY.dtype(x), shown.dtype, shown.tolist()) == ("bfloat16", np.uint16, [0x3F80, 0xC000])
    shown[0] = 0x4000
    assert x[0] == 2, "to_numpy must not copy"
    assert NUMPY.empty((2, 3, 4, 5), "bfloat16", "cpu", arrays.CHANNELS_LAST).dtype == bfloat16


def test_foreign_byte_order_is_turned() -> None:
    x = np.arange(3, dtype=">f4")
    assert NUMPY.dtype(x) == "float32"
    shown = NUMPY.to_numpy(x)
    assert shown.dtype.isnative and shown.tolist() == [0, 1, 2]


def test_kind_of_strangers() -> None:
    for stranger in (1.0, [1.0], None, "x", np.float32(1), memoryview(b"x"), object()):
        assert arrays.kind_of(stranger) is None
    assert arrays.kind_of(torch.nn.Parameter(torch.ones(1))) is TORCH
    assert arrays.kind_of(np.ones((1, 1)).view(np.ndarray)) is NUMPY


def test_common_kind() -> None:
    x, t = np.ones(1), torch.ones(1)
    assert arrays.common_kind("op", {"a": None, "b": x, "c": x}) is NUMPY
    with pytest.raises(TypeError, match=r"^op: c must be a numpy array like b, but got a torch array; kinds of array"):
        arrays.common_kind("op", {"a": None, "b": x, "c": t})
    with pytest.raises(TypeError, match=r"^op: b must be an array .*numpy, torch.*, but got list$"):
        arrays.common_kind("op", {"a": x, "b": [1.0]})
    with pytest.raises(TypeError, match=r"^op: a must be an array .*, but got NoneType$"):
        arrays.common_kind("op", {"a": None, "b": x}, ("a",))
    with pytest.raises(TypeError, match=r"^op: at least one array is required, but got none$"):
        arrays.common_kind("op", {"a": None})


def test_register_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array library that gpuconv has not heard of takes part once its kind is registered."""

    class Wrapped:
        def __init__(self, array: np.ndarray) -> None:
            self.array, self.shape = array, array.shape

    class WrappedKind(type(NUMPY)):
        name = "wrapped"

        def owns(self, array: object) -> bool:
            return isinstance(array, Wrapped)

        def dtype(self, array: Wrapped) -> str:
            return array.array.dtype.name

        def strides(self, array: Wrapped) -> tuple[int, ...]:
            return NUMPY.strides(array.array)

        def empty(self, *args) -> Wrapped:
            return Wrapped(NUMPY.empty(*args))

        def to_numpy(self, array: Wrapped) -> np.ndarray:
            return array.array

    monkeypatch.setattr(arrays, "_KINDS", [*arrays._KINDS])
    arrays.register_kind(WrappedKind())
    result = gpuconv.conv1d(Wrapped(np.ones((1, 1, 4))), Wrapped(np.ones((1, 1, 3))))
    assert isinstance(result, Wrapped) and result.array.tolist() == [[[3, 3]]]


def test_a_masked_array_is_refused_as_its_mask_would_be_ignored():
    x = np.ma.masked_greater(np.ones((1, 1, 5)), 0.5)
    with pytest.raises(TypeError, match=r"input must be an array \(numpy, torch, cupy\), but got MaskedArray"):
        gpuconv.conv1d(x, np.ones((1, 1, 3)))
