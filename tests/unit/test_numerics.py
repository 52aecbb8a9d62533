"""The tolerance rule lets right results pass and catches small and systematic errors."""

import numpy as np
import pytest

from gpuconv import numerics

DTYPES = ["float16", "float32", "float64", "complex64", "complex128"]


def sums(rng: np.random.Generator, length: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the result of `dtype` of 400 sums of products, summed in the accumulation type, the exact one, and |.|."""
    a, b = (rng.standard_normal((400, length)).astype(dtype) for _ in range(2))
    acc = {"float16": "float32"}.get(dtype, dtype)
    wide = np.clongdouble if dtype.startswith("complex") else np.longdouble
    products = a.astype(wide) * b.astype(wide)
    exact = products.sum(1)
    ours = np.einsum("ij,ij->i", a.astype(acc), b.astype(acc)).astype(dtype)
    return (
        ours,
        exact.astype("complex128" if wide is np.clongdouble else "float64"),
        np.abs(products).sum(1).astype(float),
    )


@pytest.mark.parametrize("length", [1, 2, 9, 576, 10_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_right_results_pass(dtype: str, length: int, rng: np.random.Generator) -> None:
    ours, exact, magnitude = sums(rng, length, dtype)
    numerics.assert_close(ours, exact, magnitude, dtype, length)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_element_is_named(dtype: str, rng: np.random.Generator) -> None:
    ours, exact, magnitude = sums(rng, 9, dtype)
    allowed = numerics.tolerance(exact, magnitude, dtype, 9)
    ours[123] += 4 * allowed[123]
    with pytest.raises(AssertionError, match=r"1 of 400 elements are out of tolerance[^$]*worst at \(123,\): got"):
        numerics.assert_close(ours, exact, magnitude, dtype, 9)


def test_a_bias_inside_the_bound_is_an_error(rng: np.random.Generator) -> None:
    _, exact, magnitude = sums(rng, 9, "float32")
    biased = (exact + 0.7 * numerics.tolerance(exact, magnitude, "float32", 9)).astype("float32")
    with pytest.raises(AssertionError, match=r"0 of 400 elements[^$]*RMS 0\.[67]"):
        numerics.assert_close(biased, exact, magnitude, "float32", 9)


def test_accumulating_in_16_bits_is_an_error(rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal((50, 576)).astype(np.float16) for _ in range(2))
    products = a.astype(float) * b.astype(float)
    total = np.zeros(50, np.float16)
    for i in range(576):
        total += a[:, i] * b[:, i]
    with pytest.raises(AssertionError):
        numerics.assert_close(total, products.sum(1), np.abs(products).sum(1), "float16", 576)


def test_tf32_is_told_from_ieee(rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal((400, 64)).astype(np.float32) for _ in range(2))
    rounded = [((x.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32) for x in (a, b)]
    ours = (rounded[0] * rounded[1]).sum(1)
    products = a.astype(float) * b.astype(float)
    numerics.assert_close(ours, products.sum(1), np.abs(products).sum(1), "float32", 64, "tf32")
    for precision in ("ieee", "tf32x3"):
        with pytest.raises(AssertionError):
            numerics.assert_close(ours, products.sum(1), np.abs(products).sum(1), "float32", 64, precision)


def test_bfloat16_is_held_in_float32() -> None:
    exact = np.array([1.0, 1.0078125, 3.0])
    numerics.assert_close(exact.astype(np.float32), exact, exact, "bfloat16", 1)
    with pytest.raises(AssertionError, match="some values need more than 8 bits"):
        numerics.assert_close((exact + 1e-4).astype(np.float32), exact, exact, "bfloat16", 1)


def test_shape_and_dtype_must_be_equal() -> None:
    one = np.ones((2, 1))
    with pytest.raises(AssertionError, match="shape must be"):
        numerics.assert_close(np.ones((2, 2)), one, one, "float64", 1)
    with pytest.raises(AssertionError, match="dtype must be float32, but is float64"):
        numerics.assert_close(one, one, one, "float32", 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values_stand_where_the_reference_has_them(value: float) -> None:
    plain, special, ones = np.ones(3), np.array([1, value, 1]), np.ones(3)
    numerics.assert_close(special, special, ones, "float64", 1)
    for ours, reference in ((plain, special), (special, plain), (special, -special if value == value else plain)):
        with pytest.raises(AssertionError, match=r"worst at \(1,\)"):
            numerics.assert_close(ours, reference, ones, "float64", 1)


def test_overflow_of_the_type_is_infinite() -> None:
    reference = np.array([65519.0, 65521.0, 7e4, -7e4, 60000.0])
    with np.errstate(over="ignore"):
        ours = reference.astype(np.float16)
    numerics.assert_close(ours, reference, np.abs(reference), "float16", 1)
    ours[1] = 65504  # within the tolerance of the limit both are right
    numerics.assert_close(ours, reference, np.abs(reference), "float16", 1)
    ours[4] = np.inf
    with pytest.raises(AssertionError, match=r"worst at \(4,\)"):
        numerics.assert_close(ours, reference, np.abs(reference), "float16", 1)


def test_underflow_is_gradual() -> None:
    reference = np.array([2.0**-24, 1.4 * 2.0**-24, 2.0**-26])
    numerics.assert_close(reference.astype(np.float16), reference, reference, "float16", 1)


def test_integers_are_exact() -> None:
    numerics.assert_close(np.array([2**62 + 1]), np.array([2**62 + 1]), np.array([1]), "int64", 5)
    with pytest.raises(AssertionError, match="1 of 2 elements"):
        numerics.assert_close(np.array([1, 2]), np.array([1, 3]), np.array([1, 3]), "int64", 5)
    assert numerics.tolerance(np.ones(2), np.ones(2), "uint8", 5).tolist() == [0, 0]


def test_unknown_types_are_refused() -> None:
    with pytest.raises((TypeError, ValueError)):
        numerics.eps("bool")
    with pytest.raises(KeyError):
        numerics.tolerance(np.ones(1), np.ones(1), "float32", 1, "fast")


def test_the_constant_is_no_more_than_the_design_allows() -> None:
    assert numerics.C <= 4


def test_operands_that_were_rounded_have_half_a_unit_more(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((400, 9)), rng.integers(-8, 9, (400, 9)).astype(float)
    exact, magnitude = (a * b).sum(1), np.abs(a * b).sum(1)
    ours = (a.astype(np.float16).astype(float) * b).sum(1).astype(np.float16)
    numerics.assert_close(ours, exact, magnitude, "float16", 9, rounded=True)
    more = numerics.tolerance(exact, magnitude, "float16", 9, rounded=True)
    np.testing.assert_allclose(more - numerics.tolerance(exact, magnitude, "float16", 9), 2.0**-11 * magnitude)
    ours[7] = np.float16(exact[7] + 2 * more[7])
    with pytest.raises(AssertionError, match="1 of 400 elements"):
        numerics.assert_close(ours, exact, magnitude, "float16", 9, rounded=True)
