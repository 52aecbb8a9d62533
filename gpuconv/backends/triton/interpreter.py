"""Repairs that Triton's interpreter (``TRITON_INTERPRET=1``) needs in its releases up to 3.9.

The interpreter runs kernels on CPU tensors with NumPy. Seven of its operations go wrong, and one is waste:

* ``__index__`` of a tensor converts a one-element array with ``int``, which NumPy 2.4 refuses, so a loop whose bounds
  are computed fails (triton 3.6 to 3.8);
* ``dot`` multiplies the bits of bfloat16 operands, which it holds as uint16 (triton 3.6 to 3.9);
* float32 becomes bfloat16 by dropping bits, also where the nearest is asked for (triton 3.6 to 3.9);
* ``dot`` takes a NaN of float8e4nv for 480, and so does a conversion from it (triton 3.6 to 3.9);
* a conversion to float8e4nv rounds ties away from zero, drops what a fraction carries to the exponent, and has wrong
  subnormal numbers (triton 3.6 to 3.9);
* masked loads and stores refuse a mask that it holds as int32, as it does those of some comparisons (triton 3.9); those
  of tensor descriptors hand over a plain array of bools, which they take (triton 3.6 to 3.8);
* every sum and product of 32-bit integers is computed again in 64 bits to look for an overflow, and what was found is
  dropped unless the interpreter debugs, which takes half of its time (triton 3.6 to 3.9).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from ...arrays import bfloat16_bits
from ...numerics import e4m3_bits, e4m3_values

__all__ = ["repair_interpreter"]


@lru_cache(maxsize=1)
def repair_interpreter() -> None:
    """Repair the interpreter of this process. Call it before the first launch; later calls do nothing."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor
    multiply = interpreter.InterpreterBuilder.create_dot
    read = interpreter.InterpreterBuilder.create_masked_load
    write = interpreter.InterpreterBuilder.create_masked_store

    def patch_with_index(tensor: Any, scope: Any, *rest: Any) -> None:
        patch_tensor(tensor, scope, *rest)
        scope.set_attr(tensor, "__index__", lambda value: int(np.asarray(value.handle.data).item()))

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar == tl.float8e4nv:
            return interpreter.TensorHandle(e4m3_values(operand.data), tl.float32)
        if operand.dtype.scalar != tl.bfloat16 or operand.data.dtype != np.uint16:
            return operand
        return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widened(a), widened(b), *rest)

    def converted(convert: Any) -> Any:
        def to(self: Any, value: Any, target: Any, *rest: Any) -> Any:
            kinds = (value.dtype.scalar, target.scalar)
            if kinds == (tl.float32, tl.bfloat16):
                with np.errstate(all="ignore"):
                    return interpreter.TensorHandle(bfloat16_bits(value.data), tl.bfloat16)
            if kinds == (tl.float32, tl.float8e4nv):
                return interpreter.TensorHandle(e4m3_bits(np.asarray(value.data)), tl.float8e4nv)
            if kinds in ((tl.bfloat16, tl.float32), (tl.float8e4nv, tl.float32)):
                return widened(value)
            return convert(self, value, target, *rest)

        return to

    def as_bool(mask: Any) -> Any:
        if mask is None or isinstance(mask, np.ndarray) or mask.data.dtype == np.bool_:
            return mask
        return interpreter.TensorHandle(mask.data.astype(np.bool_), tl.int1)

    def load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        return read(self, pointers, as_bool(mask), *rest, **options)

    def store(self: Any, pointers: Any, values: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        return write(self, pointers, values, as_bool(mask), *rest, **options)

    interpreter._patch_lang_tensor = patch_with_index
    interpreter.InterpreterBuilder.create_dot = dot
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(interpreter.InterpreterBuilder, name, converted(getattr(interpreter.InterpreterBuilder, name)))
    interpreter.InterpreterBuilder.create_masked_load = load
    interpreter.InterpreterBuilder.create_masked_store = store
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)
