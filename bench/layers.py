"""Layers timed here, ours beside torch's, call by call: what ``gpuconv bench`` runs, on a CPU or a GPU.

A layer is timed only after both results agree. Rounds of both alternate, so that what disturbs the machine disturbs
both; a time is the median of its rounds, the call from Python included. `bench/run.py` measures kernels alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["Layer", "Timed", "draw", "measure", "network_layers", "networks"]

WORKLOADS = Path(__file__).with_name("workloads")
_OPTIONS = ("kernel_size", "stride", "padding", "output_padding", "dilation", "groups", "ceil_mode", "output_size")
_AGREE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference that counts as rounding, of the largest value."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A call by its function's name: shapes of the input and, of a convolution, the weight; keyword arguments."""

    op: str
    input: tuple[int, ...]
    weight: tuple[int, ...] | None
    options: dict[str, Any]
    count: int = 1
    """Calls in one pass of its network."""

    @property
    def text(self) -> str:
        """The call in words."""
        options = [f"{name}={_short(value)}" for name, value in self.options.items() if not _neutral(name, value)]
        shapes = ["x".join(map(str, shape)) for shape in (self.input, self.weight) if shape]
        return " ".join((self.op, *shapes, *options))


@dataclass(frozen=True, slots=True)
class Timed:
    """A layer, the solver that ran, and milliseconds of one call; `error` is relative to the largest value."""

    layer: Layer
    solver: str
    ours: float | None
    theirs: float | None
    error: float | None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Torch's time over ours: above 1 ours is faster."""
        return self.theirs / self.ours if self.ours and self.theirs else None


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(set(map(str, value))) == 1:
        value = value[0]
    return str(value).replace(" ", "")


def _neutral(name: str, value: Any) -> bool:
    usual = 1 if name in ("stride", "dilation", "groups") else 0
    return name != "kernel_size" and name != "output_size" and _short(value) in (str(usual), str(bool(usual)))


def networks() -> list[str]:
    """Return the names of the networks whose layers are known."""
    return sorted(path.stem for path in WORKLOADS.glob("*.json"))


def network_layers(network: str, batch: int) -> list[Layer]:
    """Return the layers of a network, in its order, each once."""
    found = []
    for row in json.loads((WORKLOADS / f"{network}.json").read_text(encoding="utf-8"))["layers"]:
        options = {name: _settled(row[name]) for name in _OPTIONS if name in row}
        weight = tuple(row["weight"]) if "weight" in row else None
        found.append(Layer(row["op"], (batch, *row["input"]), weight, options, row["count"]))
    return found


def _settled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _arrays(layer: Layer, device: str, dtype: str) -> list[Any]:
    """Return operands: torch tensors, or NumPy arrays where torch is missing."""
    import numpy as np

    generator = np.random.default_rng(0)
    shapes = [shape for shape in (layer.input, layer.weight) if shape]
    arrays = [generator.standard_normal(shape, np.float32) for shape in shapes]
    if find_spec("torch") is None:
        return [array.astype(dtype) for array in arrays]
    import torch

    return [torch.from_numpy(array).to(device, getattr(torch, dtype)) for array in arrays]


def _rounds(calls: Sequence[Callable[[], Any]], settle: Callable[[], None], rounds: int) -> list[float]:
    """Return the median of every call in milliseconds, of rounds in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for call, of in zip(calls, times):
            settle()
            start = time.perf_counter()
            call()
            settle()
            of.append((time.perf_counter() - start) * 1e3)
    return [median(of) for of in times]


def measure(layers: Sequence[Layer], device: str, dtype: str, rounds: int) -> Iterator[Timed]:
    """Yield every layer, compared and timed; one that no solver takes, or that differs, without times."""
    import gpuconv
    from gpuconv.dispatch import record_plans

    torch: Any = None
    if find_spec("torch") is not None:
        import torch
    for layer in layers:
        arrays = _arrays(layer, device, dtype)
        calls: list[Callable[[], Any]] = [partial(getattr(gpuconv, layer.op), *arrays, **layer.options)]
        try:
            with record_plans() as plans:
                result = calls[0]()
        except gpuconv.NoSolverError as refusal:
            yield Timed(layer, "none", None, None, None, str(refusal).partition("\n")[0])
            continue
        solver = plans[-1].solver.id if plans else "replayed"
        if torch is None:
            yield Timed(layer, solver, *_rounds(calls, lambda: None, rounds), None, None)
            continue
        calls.append(partial(getattr(torch.nn.functional, layer.op), *arrays, **layer.options))
        with torch.inference_mode():
            expected = calls[1]()
            error = float((result.double() - expected.double()).abs().max() / expected.double().abs().max())
            if not error <= _AGREE[dtype]:
                yield Timed(layer, solver, None, None, error, "the results differ")
                continue
            settle = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
            yield Timed(layer, solver, *_rounds(calls, settle, rounds), error)


def draw(path: Path, rows: Sequence[Timed], title: str) -> bool:
    """Draw torch's time over ours, or where torch is missing our times; return whether there was anything to draw."""
    from matplotlib.figure import Figure

    shown = [row for row in reversed(rows) if row.ours]
    if not shown:
        return False
    ratios = [row.ratio for row in shown]
    figure = Figure(figsize=(10, 1.4 + 0.24 * len(shown)), layout="constrained")
    axes = figure.subplots()
    if all(ratios):
        values = [ratio or 0.0 for ratio in ratios]
        axes.barh(range(len(shown)), values, color=["#2b7a4b" if value >= 1 else "#b03a2e" for value in values])
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("torch's time over ours, in this run: right of 1 ours is faster")
    else:
        axes.barh(range(len(shown)), [row.ours or 0.0 for row in shown], color="#1f6f8b")
        axes.set_xlabel("ms per call, in this run")
    axes.set_yticks(range(len(shown)), [row.layer.text for row in shown], fontsize=7)
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=110)
    return True
