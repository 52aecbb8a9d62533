"""Maxima with their places in one integer: keys of 32 bits for 16-bit numbers, of which a window takes the largest.

Of two elements the one with the larger key is what torch's max pools take: the larger, of equal ones the first, and the
last NaN. The high bits of a key are the number as float32, as an integer of the same order, in which both zeros are 0.
The low byte falls with the place, from 0 to 63, which must grow along every window; of NaN, which is above all numbers,
the bits above it rise with the place. float16 and bfloat16 as float32 leave 13 low bits free.
"""

import triton
import triton.language as tl


@triton.jit
def key_of(value, place):
    """Return the key of float32 `value`, exact in 16 bits, at `place`."""
    bits = value.to(tl.int32, bitcast=True)
    sign = bits >> 31
    key = ((bits & 0x7FFFFFFF) ^ sign) - sign + (63 - place)
    return tl.where(value != value, 0x7FFFC000 + (place << 8) + (63 - place), key)


@triton.jit
def keys_of(columns, place_of_row, COUNT: tl.constexpr, DILATION: tl.constexpr):
    """Return the keys of COUNT columns of a row."""
    keys = ()
    for j in tl.static_range(0, COUNT):
        keys = keys + (key_of(columns[j], place_of_row + j // DILATION),)
    return keys


@triton.jit
def value_of(key):
    """Return as float32 the number that a key stands for."""
    sign = key >> 31
    magnitude = ((key & -0x2000) ^ sign) - sign
    return (magnitude | (key & -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def place_of(key):
    """Return an integer of which the low byte is the place in a key."""
    return 63 - key


@triton.jit
def is_lowest(key):
    """Tell whether a key is of -inf."""
    return key < -0x7F800000 + 64
