"""The quicker interpreter computes what Triton's own does, but for bfloat16's subnormal numbers, which it keeps."""

import numpy as np
import pytest
import quick
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

CONVERT = next(cell.cell_contents for cell in interpreter._convert_float.__closure__)
"""Triton's own conversion, which the quicker one holds."""


def is_subnormal(bits: np.ndarray, bit: int, mantissa: int) -> np.ndarray:
    """Return where numbers are subnormal: nothing in the exponent, but in the mantissa."""
    exponent = (bits >> mantissa) & 0xFF
    return (exponent == 0) & (bits << (bit - mantissa) != 0)


def test_bfloat16_becomes_float32_bit_by_bit():
    bits = np.arange(1 << 16, dtype=np.uint16)
    ours = interpreter._convert_float(bits, tl.bfloat16, tl.float32, None)
    torchs = (
        torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().view(torch.int32).numpy().view(np.uint32)
    )
    np.testing.assert_array_equal(ours, torchs)
    theirs, subnormal = CONVERT(bits, tl.bfloat16, tl.float32, None), is_subnormal(bits, 16, 7)
    np.testing.assert_array_equal(ours[~subnormal], theirs[~subnormal])


def test_float32_becomes_bfloat16_as_the_interpreter_cuts_it():
    low = np.array([0, 1, 0x1234, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = ((np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] | low).ravel()
    arguments = bits.view(np.float32), tl.float32, tl.bfloat16, None
    ours, theirs = interpreter._convert_float(*arguments), CONVERT(*arguments)
    subnormal = is_subnormal(bits, 32, 23)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours[~subnormal], theirs[~subnormal])
    np.testing.assert_array_equal(ours[subnormal], (bits >> 16)[subnormal])


@pytest.mark.parametrize("mode", ["rtne", "rtz"])
def test_conversions_with_a_rounding_are_the_interpreters_own(mode):
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1000, np.uint32).view(np.float32)
    arguments = bits, tl.float32, tl.bfloat16, interpreter.interpreter_semantic._str_to_rounding_mode(mode)
    np.testing.assert_array_equal(interpreter._convert_float(*arguments), CONVERT(*arguments))


@pytest.mark.parametrize("shape", [[1], [16], [4, 1, 8]])
@pytest.mark.parametrize("element", [tl.float32, tl.bfloat16, tl.pointer_type(tl.int8)])
def test_types_and_values_of_a_known_shape_are_those_of_a_new_one(shape, element):
    quick_init, quick_value = tl.block_type.__init__, tl.tensor.__init__
    init, value = (
        next(c.cell_contents for c in f.__closure__ if callable(c.cell_contents)) for f in (quick_init, quick_value)
    )
    first, again, theirs = (tl.block_type(element, shape) for _ in range(3))
    init(theirs, element, shape)
    constants = tl.block_type(element, [tl.constexpr(size) for size in shape])
    for of in (first, again, constants):
        assert vars(of).keys() == vars(theirs).keys()
        assert (of.name, of.numel, of.shape.values) == (theirs.name, theirs.numel, theirs.shape.values)
        assert of.element_ty == element
    handle = interpreter.TensorHandle(np.zeros(shape, np.uint64), tl.uint64)
    ours, theirs = tl.tensor(handle, again), tl.tensor(handle, again)
    value(theirs, handle, again)
    assert vars(ours).keys() == vars(theirs).keys()
    assert ours.dtype == theirs.dtype and ours.numel.value == theirs.numel.value
    assert [size.value for size in ours.shape] == [size.value for size in theirs.shape] == shape


@pytest.mark.parametrize("shape", [[3], [4, 5]])
def test_a_shape_that_is_refused_is_refused_each_time(shape):
    for _ in range(3):
        with pytest.raises(ValueError, match="power of 2"):
            tl.block_type(tl.float32, shape)
    with pytest.raises(TypeError, match="0d"):
        tl.block_type(tl.float32, [])


@triton.jit
def inner(x, SIZE: tl.constexpr):
    return tl.sum(tl.broadcast_to(x[:, None], [SIZE, SIZE]) + x[None, :], 0)


@triton.jit
def kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, inner(x, SIZE) + x.to(tl.bfloat16).to(tl.float32))


def test_a_launch_with_a_device_function_and_nothing_left_behind():
    x = torch.arange(8, dtype=torch.float32)
    before = tl.load, tl.tensor.__add__, tl.reduce, tl.dtype.to_ir
    for _ in range(2):
        y = torch.empty(8)
        kernel[(1,)](x, y, 8)
        torch.testing.assert_close(y, 8 * x + x.sum() + x)
        assert before == (tl.load, tl.tensor.__add__, tl.reduce, tl.dtype.to_ir)


def test_a_second_quickening_changes_nothing():
    before = interpreter._convert_float, tl.block_type.__init__
    quick.quicken()
    assert before == (interpreter._convert_float, tl.block_type.__init__)


SCALARS = {tl.int1: np.bool_, tl.int32: np.int32, tl.int64: np.int64, tl.float16: np.float16, tl.float32: np.float32,
           tl.float64: np.float64}  # fmt: skip
SHAPES = ((), (1,), (8,), (4, 8), (4, 1), (1, 8), (2, 4, 8))
NUMBERS = (0, 3, -7, True, 2**31 - 1, -(2**31), 2**31, 2**40, -(2**63), 0.5, -1e30, 1e300, float("nan"), float("inf"))


def value(of: tl.dtype, shape: tuple[int, ...], rng: np.random.Generator) -> tl.tensor:
    """Return a value as a program has it: small numbers, zeros and extremes."""
    kind = np.uint64 if of.is_ptr() else SCALARS[of]
    drawn = rng.integers(-9, 10, shape or (1,))
    if np.issubdtype(kind, np.floating):
        data = np.where(drawn == 5, np.nan, np.where(drawn == -5, np.inf, drawn / 4)).astype(kind)
    elif kind is np.bool_:
        data = drawn > 0
    else:
        data = drawn.astype(kind)
        if kind in (np.int32, np.int64):
            data.flat[0] = rng.choice([np.iinfo(kind).max, np.iinfo(kind).min, 0, -1])
    handle = interpreter.TensorHandle(data, of)
    return tl.tensor(handle, tl.block_type(of, list(shape)) if shape else of)


def outcome(call, *arguments):
    """Return what a call gives in plain words, or the kind of what it raises."""
    with np.errstate(all="ignore"):
        try:
            found = call(*arguments)
        except Exception as error:
            return type(error)
    data = found.handle.data
    return str(found.type), str(found.handle.dtype), np.shape(data), np.asarray(data).dtype, np.asarray(data).tobytes()


@pytest.mark.parametrize("name", sorted(quick._MEMBERS))
def test_operators_give_what_tritons_do(name, rng):
    """Of every two types and shapes, and of numbers: value, type and what is refused, bit by bit."""
    member = getattr(tl.tensor, name)
    assert tl.core.is_builtin(member)
    ours, theirs = quick._operation(name, member), quick._interpreted(member)
    pointer = tl.pointer_type(tl.float32)
    quickly = 0
    for of in (*SCALARS, pointer):
        for shape in SHAPES:
            left = value(of, shape, rng)
            others = [value(other, size, rng) for other in SCALARS for size in SHAPES]
            for right in (*others, *NUMBERS, *(tl.constexpr(number) for number in NUMBERS)):
                expected = outcome(theirs, left, right)
                assert outcome(ours, left, right) == expected, (name, left.type, getattr(right, "type", right))
                quickly += isinstance(expected, tuple)
    assert quickly > 100
