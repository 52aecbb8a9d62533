"""Calls of every function drawn from a seed, each with neighbours that differ from it in one argument.

What a library remembers of a call is right if a call answers the same whatever was called before it: three times in a
row, between its neighbours, and with nothing remembered. The lanes say in what arrays the calls are made.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from composed_calls import COMPOSED, composed

import gpuconv
from gpuconv import dispatch
from gpuconv.dispatch import plan_cache

Random = np.random.Generator
Build = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Drawn:
    """A call: a function of gpuconv by name and its arguments by name, arrays as NumPy's. `changed` says in what."""

    function: str
    arguments: dict[str, Any]
    changed: str = ""
    setting: str = ""

    def __str__(self) -> str:
        shown = {
            name: f"{value.dtype}{value.shape}/{value.strides}" if isinstance(value, np.ndarray) else value
            for name, value in self.arguments.items()
        }
        return f"{self.function}({shown}) {self.changed} {self.setting}"

    def but(self, changed: str, **arguments: Any) -> Drawn:
        """Return the call with other arguments."""
        return replace(self, arguments={**self.arguments, **arguments}, changed=changed)

    def run(self, build: Build) -> Any:
        """Make the call on arrays that `build` makes of NumPy's."""
        built = {name: build(each) if isinstance(each, np.ndarray) else each for name, each in self.arguments.items()}
        if self.setting == "gradients":
            built = {name: _leaf(each) for name, each in built.items()}
        function = getattr(gpuconv, self.function)
        if self.setting == "explained":
            return str(gpuconv.explain(function, **built))
        result = function(**built)
        leaves = [each for each in built.values() if getattr(each, "requires_grad", False)]
        return _with_gradients(result, leaves) if leaves else result


def _leaf(value: Any) -> Any:
    """Return a tensor as one that requires a gradient, and everything else as it is."""
    return value.requires_grad_() if getattr(value, "is_floating_point", bool)() else value


def _with_gradients(result: Any, leaves: list[Any]) -> Any:
    """Return results of torch and what they give back to `leaves`."""
    import torch

    outputs = [part for part in _parts(result) if part.requires_grad]
    if not outputs:
        return result
    found = torch.autograd.grad(outputs, leaves, [torch.ones_like(part) for part in outputs], allow_unused=True)
    return (*(part.detach() for part in _parts(result)), *(part for part in found if part is not None))


# How the arrays of a call lie in memory.


def _channels_last(a: np.ndarray) -> np.ndarray:
    return a if a.ndim < 3 else np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -3, -1)), -1, -3)


def _swapped(a: np.ndarray) -> np.ndarray:
    return a if a.ndim < 2 else np.ascontiguousarray(a.swapaxes(0, -1)).swapaxes(0, -1)


def _stepped(a: np.ndarray) -> np.ndarray:
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def _cut(a: np.ndarray) -> np.ndarray:
    wide = np.zeros((*a.shape[:-1], a.shape[-1] + 3), a.dtype)
    wide[..., 1:-2] = a
    return wide[..., 1:-2]


def _negative(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1]


def _expanded(a: np.ndarray) -> np.ndarray:
    return np.broadcast_to(a[:1], a.shape)


def _offset(a: np.ndarray, bytes: int | None = None) -> np.ndarray:
    """Return a copy that begins one element, or a number of bytes, behind where memory is aligned."""
    bytes = a.itemsize if bytes is None else bytes
    whole = np.zeros(a.nbytes + 128, np.uint8)
    begin = -whole.ctypes.data % 64 + bytes
    copy = whole[begin : begin + a.nbytes].view(a.dtype) if bytes % a.itemsize == 0 else None
    if copy is None:
        copy = np.ndarray((a.size,), a.dtype, whole, begin)
    copy = copy.reshape(a.shape)
    copy[...] = a
    return copy


def _readonly(a: np.ndarray) -> np.ndarray:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": np.ascontiguousarray,
    "channels last": _channels_last,
    "swapped": _swapped,
    "stepped": _stepped,
    "cut": _cut,
    "expanded": _expanded,
    "offset": _offset,
}
NUMPY_LAYOUTS = LAYOUTS | {
    "negative": _negative,
    "read-only": _readonly,
    "unaligned": lambda a: _offset(a, 1),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


# Calls of every function.


def _values(rng: Random, *shape: int) -> np.ndarray:
    """Return numbers, sometimes with an infinity or a NaN among them, sometimes zeros of both signs."""
    values = rng.standard_normal(shape).astype(np.float32)
    if rng.random() < 0.15:
        values = np.copysign(np.float32(0), values)
    if values.size and rng.random() < 0.2:
        values.reshape(-1)[rng.integers(values.size)] = rng.choice([np.nan, -np.nan, np.inf])
    return values


def _lead(rng: Random, batched: bool) -> tuple[int, ...]:
    return ((int(rng.integers(0, 4)) or 2,) if batched else ()) + (int(rng.integers(1, 4)),)


def _one(rng: Random, value: int, ndim: int) -> Any:
    """Return `value` for every axis, in one of the ways that mean the same."""
    return value if rng.random() < 0.5 else (value,) * ndim


def _conv_like(rng: Random, ndim: int) -> dict[str, Any]:
    stride, dilation = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    return {
        "stride": _one(rng, stride, ndim),
        "padding": _one(rng, int(rng.integers(0, 3)), ndim),
        "dilation": _one(rng, dilation, ndim),
        "groups": int(rng.choice([1, 2])),
    }


def _conv(rng: Random, function: str, ndim: int) -> dict[str, Any]:
    options = _conv_like(rng, ndim)
    groups, kernel = options["groups"], tuple(int(k) for k in rng.integers(1, 4, ndim))
    c, k = 2 * int(rng.integers(1, 3)), 2 * int(rng.integers(1, 3))
    size = tuple(int(n) for n in rng.integers(5, 8, ndim))
    n = int(rng.integers(1, 3))
    x, w = _values(rng, n, c, *size), _values(rng, k, c // groups, *kernel)
    if function.endswith("_grad"):
        y = gpuconv.conv1d if ndim == 1 else gpuconv.conv2d if ndim == 2 else gpuconv.conv3d
        grad = _values(rng, *y(x, w, **options).shape)
        if function.endswith("input_grad"):
            return {"input_size": x.shape, "weight": w, "grad_output": grad, **options}
        return {"input": x, "weight_size": w.shape, "grad_output": grad, **options}
    if rng.random() < 0.3:
        x = x[0]
    if "transpose" in function:
        w = _values(rng, c, k // groups, *kernel)
        options["padding"] = 0
        options["output_padding"] = 0
    else:
        options["padding_mode"] = str(rng.choice(["zeros", "circular"]))
    options["bias"] = _values(rng, k) if rng.random() < 0.7 else None
    options["activation"] = "relu" if rng.random() < 0.2 else None
    return {"input": x, "weight": w, **options}


def _window(rng: Random, size: tuple[int, ...]) -> dict[str, Any]:
    """Return windows that often are one, whole or not."""
    ndim, kind = len(size), rng.random()
    if kind < 0.35:  # one window that is the plane, or leaves some of it out
        kernel = tuple(max(1, n - int(rng.integers(0, 2))) for n in size)
        return {"kernel_size": kernel, "stride": int(rng.integers(2, 9)), "padding": 0}
    kernel = tuple(int(k) for k in rng.integers(1, 4, ndim))
    padding = int(rng.integers(0, min(kernel) // 2 + 1))
    kernel = tuple(min(k, n + 2 * padding) for k, n in zip(kernel, size))
    return {"kernel_size": kernel, "stride": int(rng.integers(1, 4)), "padding": padding}


def _pool(rng: Random, function: str, ndim: int) -> dict[str, Any]:
    size = tuple(int(n) for n in rng.integers(4 if "fractional" in function else 3, 8, ndim))
    x = _values(rng, *_lead(rng, rng.random() < 0.7), *size)
    if "unpool" in function:
        y, indices = getattr(gpuconv, f"max_pool{ndim}d")(x, 2, return_indices=True)
        found = {"input": y, "indices": indices}
        if function.endswith("backward"):
            return {"grad_output": x, **found}
        return found | {"kernel_size": 2, "stride": None, "padding": 0, "output_size": x.shape[-ndim:]}
    if function in ("unfold", "fold"):
        options = {"kernel_size": 2, "dilation": 1, "padding": int(rng.integers(0, 2)), "stride": 1}
        if function == "unfold":
            return {"input": x, **options}
        return {"input": _values(rng, *gpuconv.unfold(x, **options).shape), "output_size": size, **options}
    if "adaptive" in function:
        output = tuple(int(rng.choice([1, 1, n, 2, 3])) for n in size)
        output = (1,) * ndim if rng.random() < 0.4 else output
        options = {"output_size": output}
    elif "fractional" in function:
        options = {"kernel_size": 2, "output_size": 2}
        samples = rng.random((*((1,) if x.ndim == ndim + 1 else x.shape[:1]), x.shape[-ndim - 1], ndim))
        options["_random_samples"] = samples.astype(np.float32)
    else:
        options = _window(rng, size)
        options["ceil_mode"] = bool(rng.random() < 0.3)
        if "max" in function:
            options["dilation"] = 1
        elif "avg" in function:
            options["count_include_pad"] = bool(rng.random() < 0.5)
            if ndim > 1:
                options["divisor_override"] = None if rng.random() < 0.7 else 3
        else:
            options["norm_type"] = float(rng.choice([1, 2, 3, 2.5, np.inf]))
            options["padding"] = 0
            if ndim == 1:
                options["kernel_size"] = options["kernel_size"][0]
    if "max" in function and not function.endswith("backward"):
        options["return_indices"] = bool(rng.random() < 0.4)
    if not function.endswith("backward"):
        return {"input": x, **options}
    return _backward(rng, function, x, options)


def _backward(rng: Random, function: str, x: np.ndarray, options: dict[str, Any]) -> dict[str, Any]:
    forward = getattr(gpuconv, function.removesuffix("_backward").removesuffix("_with_indices"))
    if "max" in function:
        y, indices = forward(x, **options, return_indices=True)
        options["indices"] = indices
    else:
        y = forward(x, **options)
    options.pop("_random_samples", None)
    if "adaptive" in function:
        options.pop("output_size")
    return {"grad_output": _values(rng, *y.shape), "input": x, **options}


def functions() -> list[str]:
    """Return the names of the public functions that take arrays, but for those that write to them."""
    found = [name for name in gpuconv.__all__ if inspect.isfunction(getattr(gpuconv, name))]
    parameters = {name: inspect.signature(getattr(gpuconv, name)).parameters for name in found}
    return [name for name in found if "backend" in parameters[name] and "state" not in parameters[name]]


def drawn(rng: Random, function: str) -> Drawn:
    """Draw a call of `function`."""
    if any(word in function for word in COMPOSED):
        return Drawn(function, composed(rng, function, _values))
    ndim = next((int(d) for d in "123" if f"{d}d" in function), 2)
    draw = _conv if function.startswith("conv") else _pool
    return Drawn(function, draw(rng, function, ndim))


# Neighbours.


def _other_values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an argument that is no array may be instead, other types of the same value among it."""
    if isinstance(value, bool):
        yield from (("flipped", not value), ("an integer", int(value)))
    elif isinstance(value, int):
        yield from (("more", value + 1), ("a float", float(value)), ("a list", [value]), ("a string", str(value)))
        yield "NumPy's", np.int64(value)
        if value in (0, 1):
            yield "a bool", bool(value)
        if value > 1:
            yield "less", value - 1
    elif isinstance(value, tuple):
        yield from (("a list", list(value)), ("cut", value[:-1]), ("longer", (*value, 1)))
        yield "more", (*value[:-1], value[-1] + 1)
        yield "floats", tuple(map(float, value))
        if value[-1] > 1:
            yield "less", (*value[:-1], value[-1] - 1)
    elif isinstance(value, float):
        yield "more", value + 1
        if value == int(min(value, 9)):
            yield "an integer", int(value)
    elif value is None and name in ("divisor_override", "stride"):
        yield "given", 2
    elif name == "padding_mode":
        yield from (("replicate", "replicate"), ("wrong", "mirror"))
    elif name == "activation":
        yield "given", "relu" if value is None else None


def _other_arrays(name: str, a: np.ndarray, layouts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for how, lay in layouts.items():
        yield how, lay(a)
    if a.dtype.kind == "f":
        yield "wider", a.astype(np.float64)
        yield "narrower", a.astype(np.float16)
        yield "whole", np.nan_to_num(a, posinf=3, neginf=3).astype(np.int64)
        yield "other values", a + 1
    yield "shorter", a[..., :-1]
    yield "longer", np.concatenate([a, a[..., -1:]], -1)
    if a.ndim > 1:
        yield "fewer", a[:-1]
        yield "unbatched", a[0]
        yield "empty", a[:0]


def neighbours(call: Drawn, layouts: dict[str, Any], settings: Settings) -> list[Drawn]:
    """Return calls that differ from `call` in one argument or setting; some are errors."""
    found = []
    for name, value in call.arguments.items():
        array = isinstance(value, np.ndarray)
        others = _other_arrays(name, value, layouts) if array else _other_values(name, value)
        found += [call.but(f"{name} {how}", **{name: other}) for how, other in others]
    arrays = {name: value for name, value in call.arguments.items() if isinstance(value, np.ndarray)}
    floats = {name: value for name, value in arrays.items() if value.dtype.kind == "f"}
    for dtype in ("float64", "float16"):
        found.append(call.but(f"all {dtype}", **{name: value.astype(dtype) for name, value in floats.items()}))
    for how, lay in layouts.items():
        found.append(call.but(f"all {how}", **{name: lay(value) for name, value in arrays.items()}))
    found += [replace(call, setting=setting, changed=setting) for setting in settings]
    if call.function.startswith("max_pool") and not call.function.endswith("backward"):
        found.append(call.but("dilated", dilation=2))
    return found


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


Settings = dict[str, Callable[[], AbstractContextManager[Any]]]

SETTINGS: Settings = {
    "small workspace": lambda: _environment("GPUCONV_WORKSPACE", "40000"),
    "no workspace": lambda: _environment("GPUCONV_WORKSPACE", "0"),
    "forced backend": lambda: gpuconv.use_backend("numpy"),
    "forced by the environment": lambda: _environment("GPUCONV_BACKEND", "numpy"),
    "a backend that cannot": lambda: gpuconv.use_backend("cupy"),
    "errors raise": lambda: np.errstate(all="raise"),
    "recording plans": lambda: dispatch.record_plans(),
    "recording problems": lambda: gpuconv.record_problems(),
    "explained": nullcontext,
}


TORCH_SETTINGS: Settings = SETTINGS | {
    "without gradients": lambda: _of_torch("no_grad"),
    "inference": lambda: _of_torch("inference_mode"),
    "gradients": nullcontext,
    "autocast": lambda: _of_torch("autocast", "cpu"),
}


def _of_torch(name: str, *arguments: Any) -> AbstractContextManager[Any]:
    import torch

    context: AbstractContextManager[Any] = getattr(torch, name)(*arguments)
    return context


# Answers.


def described(result: Any) -> Any:
    """Return everything about a result, bit for bit."""
    if isinstance(result, str):
        return result
    if isinstance(result, tuple):
        return tuple(map(described, result))
    host = getattr(result, "host", result)  # of the stand-in for CuPy's arrays
    if not isinstance(host, np.ndarray):
        import torch

        kind = (type(result), result.dtype, result.stride(), result.requires_grad, result.is_inference())
        dense = result.detach().clone(memory_format=torch.contiguous_format)
        host = dense.view(torch.uint8 if result.dim() else result.dtype).numpy()
        return kind, tuple(result.shape), host.tobytes()
    return type(result), str(result.dtype), host.shape, host.strides, host.tobytes()


@dataclass
class Answer:
    """What a call returned, or how it failed; `held` is the result itself."""

    facts: Any
    held: Any = None


def answer(call: Drawn, build: Build) -> Answer:
    """Make a call and return what came of it, warnings included."""
    with warnings.catch_warnings(record=True) as warned, TORCH_SETTINGS.get(call.setting, nullcontext)():
        warnings.simplefilter("always")
        try:
            result = call.run(build)
        except Exception as error:
            return Answer((type(error), str(error), _texts(warned)))
    return Answer((described(result), _texts(warned)), result)


def _texts(warned: Iterable[warnings.WarningMessage]) -> list[str]:
    """Return what a call warned of, but for the workspace, of which only the first call of a process warns."""
    return [str(each.message) for each in warned if each.category is not gpuconv.WorkspaceWarning]


def _caches() -> list[Any]:
    """Return every cache of functions of gpuconv that holds more than one answer."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "gpuconv"]
    values = {id(value): value for module in modules for value in list(vars(module).values())}
    cached = [value for value in values.values() if hasattr(value, "cache_clear")]
    return [each for each in cached if not hasattr(each, "cache_parameters") or each.cache_parameters()["maxsize"] != 1]


def forget() -> None:
    """Forget everything that calls left behind, as a new process would have it."""
    plan_cache.CACHE.clear()
    for cache in _caches():
        cache.cache_clear()


def fresh(call: Drawn, build: Build) -> Answer:
    """Answer a call with nothing remembered."""
    forget()
    return answer(call, build)


def _parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else () if result is None or isinstance(result, str) else (result,)


def _memory(array: Any) -> np.ndarray:
    host = getattr(array, "host", array)
    if isinstance(host, np.ndarray):
        return host
    import torch

    return (host.view(torch.int16) if host.dtype is torch.bfloat16 else host).detach().numpy()


def check(
    rng: Random, call: Drawn, build: Build, layouts: dict[str, Any], most: int, settings: Settings = SETTINGS
) -> list[tuple[Drawn, Answer]]:
    """Compare a call and `most` of its neighbours, made in many orders, with what they answer first of all.

    Returns these calls with those answers.
    """
    around = neighbours(call, layouts, settings)
    chosen = [call, *(around[place] for place in rng.permutation(len(around))[:most])]
    expected = [fresh(each, build) for each in chosen]
    forget()
    order = [0, 0, 0]
    for place in range(1, len(chosen)):
        order += [place, 0, place, place] if place <= 3 else [place, 0]
    order += [int(place) for place in rng.permutation(len(chosen))]
    given: list[tuple[int, Answer]] = []
    for place in order:
        found = answer(chosen[place], build)
        assert found.facts == expected[place].facts, f"{chosen[place]}\nafter {[chosen[p].changed for p, _ in given]}"
        given.append((place, found))
    for place, found in given:
        if found.held is not None:
            assert described(found.held) == expected[place].facts[0], f"{chosen[place]}: its result was overwritten"
    _check_apart([_memory(part) for _, found in given for part in _parts(found.held)])
    return list(zip(chosen, expected))


def _check_apart(results: list[np.ndarray]) -> None:
    """Assert that no two results, which are dense, share memory."""
    begins = ((memory.__array_interface__["data"][0], memory.nbytes) for memory in results if memory.size)
    for (begin, size), (following, _) in pairwise(sorted(begins)):
        assert begin + size <= following, "two results share memory"
