"""The one tolerance rule of the library, and the assertion that applies it.

Rule
----
A result ``y`` of element type `dtype`, each element a sum of `length` products, may differ from the exact result by

``C * (eps_out * |y| + eps_acc * sqrt(length) * magnitude)``

per element. ``eps_out`` is the machine epsilon of `dtype`, ``eps_acc`` that of the type in which products are formed
and summed, and `magnitude` the same operation on absolute values, ``conv(|x|, |w|)``.

Derivation
----------
Let ``u = eps / 2`` be the unit roundoff. A sum of L rounded products, in any order and any blocking, is the exact sum
of products ``x_i w_i (1 + d_i)`` with ``|d_i| <= gamma_L = L u / (1 - L u)``, so its error is at most
``gamma_L * magnitude`` (Higham 2002, section 3.1 and chapter 4). That worst case needs every rounding to go the same
way. Where the roundings behave as independent with mean zero, ``gamma_L`` becomes about ``lambda * sqrt(L) * u``, with
a probability that approaches one fast as lambda grows (Higham and Mary 2019, theorem 2.4). ``C = 2`` grants
``lambda = 4``. Storing the sum rounds once more, by at most ``u_out * |y|``, a quarter of what the first term allows.
The bound scales with the data of each element: it neither hides an error in a small element behind a large one, nor
fails an element whose terms cancel.

Below the smallest normal number of a type its epsilon acts on that number (gradual underflow), so ``|y|`` and
`magnitude` count as no less. Integers are exact: their tolerance is zero. Small-integer inputs are exact in every
type, and tests compare them with ``==``.

Beyond the bound per element, the root mean square of ``error / tolerance`` must stay below one half: a bias that stays
inside the bound everywhere is an error as well.

References
----------
- N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, SIAM, 2002.
- N. J. Higham and T. Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41(5), 2019.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

__all__ = ["RMS_LIMIT", "C", "accumulation_eps", "assert_close", "e4m3_bits", "e4m3_values", "eps", "tolerance"]

Array = np.ndarray[Any, Any]

C: Final = 2.0
"""The constant of the rule. It is not a knob: no test may use another."""

RMS_LIMIT: Final = 0.5
"""Largest root mean square of ``error / tolerance`` over a result."""

_EPS: Final = {
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
    "complex64": 2.0**-23,
    "complex128": 2.0**-52,
}

_SMALLEST_NORMAL: Final = {
    "float16": 2.0**-14,
    "bfloat16": 2.0**-126,
    "float32": 2.0**-126,
    "float64": 2.0**-1022,
    "complex64": 2.0**-126,
    "complex128": 2.0**-1022,
}

_PRECISION_EPS: Final = {
    "ieee": 2.0**-23,
    "tf32": 2.0**-10,  # operands keep 10 bits of fraction
    "tf32x3": 2.0**-21,  # operands split in two: 2 * 2**-22 for what the halves drop, 2**-22 for low times low
}

_LARGEST: Final = {
    "float16": 65504.0,
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
    "float32": (2 - 2.0**-23) * 2.0**127,
    "complex64": (2 - 2.0**-23) * 2.0**127,
}


def eps(dtype: str) -> float:
    """Return the machine epsilon of `dtype`, the distance from 1 to the next number; 0 for integers (exact)."""
    if dtype in _EPS:
        return _EPS[dtype]
    np.iinfo(dtype)  # raises ValueError for what is no integer type either
    return 0.0


def accumulation_eps(dtype: str, precision: str = "ieee") -> float:
    """Return the epsilon of the type in which products of `dtype` are formed and summed.

    16-bit types sum in float32. `precision` (``"ieee"``, ``"tf32"`` or ``"tf32x3"``) says how float32 forms its
    products; other types ignore it.
    """
    if dtype == "float32":
        return _PRECISION_EPS[precision]
    return eps("float32" if dtype in ("float16", "bfloat16") else dtype)


def tolerance(
    reference: Array, magnitude: Array, dtype: str, length: int, precision: str = "ieee", rounded: bool = False
) -> Array:
    """Return the largest error that each element may have.

    Parameters
    ----------
    reference
        The exact result, in float64 or complex128.
    magnitude
        The same operation on absolute values, ``conv(|x|, |w|)``; an epilogue counts likewise.
    dtype
        Element type of the result under test, by name (``"bfloat16"`` included).
    length
        Number of products summed into one element (``problem.reduction_length``).
    precision
        How float32 products are formed.
    rounded
        Whether one operand of each product is a result by itself that was rounded to `dtype`: half a unit in the last
        place of each product more. Samples between elements are, that 16-bit deformable convolutions multiply on
        tensor cores.

    Examples
    --------
    >>> float(tolerance(np.array(8.0), np.array(16.0), "float16", 4)) == 2 * (8 * 2**-10 + 2 * 16 * 2**-23)
    True
    """
    if eps(dtype) == 0.0:
        return np.zeros(np.shape(reference))
    acc = "float32" if dtype in ("float16", "bfloat16") else dtype
    stored = eps(dtype) * np.maximum(np.abs(reference), _SMALLEST_NORMAL[dtype])
    summed = accumulation_eps(dtype, precision) * max(length, 1) ** 0.5 * np.maximum(magnitude, _SMALLEST_NORMAL[acc])
    bound: Array = C * (stored + summed)
    return bound + eps(dtype) / 2 * magnitude if rounded else bound


def assert_close(
    actual: Array, reference: Array, magnitude: Array, dtype: str, length: int, precision: str = "ieee",
    rounded: bool = False,
) -> None:  # fmt: skip
    """Assert that `actual` is `reference` within the tolerance rule. Arguments: see :func:`tolerance`.

    `actual` has the shape of `reference` and element type `dtype`; bfloat16 is passed as float32 whose values bfloat16
    can hold. NaN and infinities must stand where the reference has them; a reference beyond the range of `dtype` counts
    as infinite, and where it is within the tolerance of that limit both are right.

    Raises
    ------
    AssertionError
        With the largest and the RMS error, and index, value, reference and tolerance of the worst element.
    """
    _check_form(actual, reference, dtype)
    if not actual.size:
        return
    with np.errstate(all="ignore"):
        value = actual.astype(np.complex128 if np.iscomplexobj(reference) else reference.dtype)
        allowed = np.broadcast_to(tolerance(reference, magnitude, dtype, length, precision, rounded), value.shape)
        error = np.abs(value - reference) if eps(dtype) else (value != reference).astype(float)
        expected = _overflowed(reference, allowed, value, dtype)
        special = ~np.isfinite(value) | ~np.isfinite(expected)
        same = np.isnan(value) & np.isnan(expected) | (value == expected)
        error = np.where(special, np.where(same, 0.0, np.inf), error)
        ratio = np.where(error > 0, error / allowed, 0.0)
        rms = float(np.sqrt(np.mean(np.square(ratio))))
    worst = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    wrong = int(np.count_nonzero(ratio > 1))
    if not wrong and rms <= RMS_LIMIT:
        return
    finite = error[np.isfinite(error)]
    rms_error = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
    raise AssertionError(
        f"{wrong} of {ratio.size} elements are out of tolerance ({dtype}, {precision}, {length} products each)\n"
        f"  max error {finite.max(initial=0.0):.6g}, RMS error {rms_error:.6g}\n"
        f"  error / tolerance: max {ratio[worst]:.4g} (limit 1), RMS {rms:.4g} (limit {RMS_LIMIT})\n"
        f"  worst at {tuple(int(i) for i in worst)}: got {actual[worst]!r}, reference {reference[worst]!r}, "
        f"tolerance {allowed[worst]:.6g}"
    )


def _check_form(actual: Array, reference: Array, dtype: str) -> None:
    if actual.shape != reference.shape:
        raise AssertionError(f"shape must be {reference.shape}, but is {actual.shape}")
    held = "float32" if dtype == "bfloat16" else dtype
    if actual.dtype.name != held:
        raise AssertionError(f"dtype must be {held}, but is {actual.dtype.name}")
    if dtype == "bfloat16" and np.any(np.ascontiguousarray(actual).view(np.uint32) & 0xFFFF):
        raise AssertionError("dtype must be bfloat16 held in float32, but some values need more than 8 bits")


def _overflowed(reference: Array, allowed: Array, value: Array, dtype: str) -> Array:
    """Return `reference` with infinities where rounding to `dtype` overflows; near the limit, as `value` has them."""
    largest = _LARGEST.get(dtype)
    if largest is None or np.iscomplexobj(reference):
        return reference
    limit = largest * (1 + eps(dtype) / 4)  # halfway to the power of two where the exponents end
    near = np.abs(np.abs(reference) - limit) <= allowed
    infinite = np.where(near, np.isinf(value), np.abs(reference) > limit)
    return np.where(infinite, np.copysign(np.inf, reference), reference)


def _e4m3() -> Array:
    """Return the value of each of the 256 patterns of float8_e4m3fn: 4 bits of exponent, 3 of fraction, no infinities.

    OCP 8-bit Floating Point Specification (OFP8), revision 1.0, table 2.
    """
    bits = np.arange(128)
    exponent, fraction = bits >> 3, bits & 7
    positive = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10))
    positive[127] = np.nan
    return np.concatenate([positive, -positive]).astype(np.float32)


_E4M3: Final = _e4m3()


def e4m3_values(bits: Array) -> Array:
    """Return the values of float8_e4m3fn, given as their bits in uint8, in float32, which holds all of them."""
    found: Array = _E4M3[bits]
    return found


def e4m3_bits(values: Array) -> Array:
    """Round float32 to the nearest float8_e4m3fn, ties to even, and return its bits as uint8.

    Beyond 448, the largest, values are 448, infinities among them. NaN stays NaN.

    Examples
    --------
    >>> e4m3_values(e4m3_bits(np.array([1.0625, -1e9], np.float32))).tolist()
    [1.0, -448.0]
    """
    nan = np.isnan(values)
    magnitude = np.where(nan, np.float32(0), np.minimum(np.abs(values), np.float32(448)))
    unit = np.frexp(np.maximum(magnitude, np.float32(2**-6)))[1] - 4  # the last bit of a value is worth 2**unit
    whole = np.rint(np.ldexp(magnitude, -unit)).astype(np.int32)
    bits = 8 * (unit + 9) + whole  # a fraction that rounds up to 16 is 0 of the next exponent
    found: Array = (np.where(nan, 0x7F, bits) + 128 * np.signbit(values)).astype(np.uint8)
    return found
