"""What a summary holds and how it is shown: as text, as a table of rich, as plain data, as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .fields import Grid, Seen, State

__all__ = ["Row", "Summary"]

_MOST_EXPENSIVE = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of a model: a module that was called, or what a module computes besides its children.

    Attributes
    ----------
    name, kind : str
        Name in the model, and class; of functions that a module calls by itself, its class and ``(functions)``.
    output : tuple of int or None
        Shape of the (first) result; None of a module that was not called.
    parameters : int
        Elements of its parameters, shared ones in the first row that has them.
    flops : int
        As torch's counter has them: 2 per multiplication and addition of convolutions, matrices and attention.
    bytes : int
        Inputs, parameters, buffers and results, each once; where functions are counted, their operands and results.
    seen : tuple of State or None
        What an element of the result sees of each axis of the input, see :mod:`gpuconv.summary.fields`; None: nothing.
    solver : str or None
        What would run on the GPU; several are joined by `` + ``.
    microseconds, least_us : float or None
        Estimated time of the convolutions and pools, and the roofline's.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None
    parameters: int
    flops: int
    bytes: int
    seen: tuple[State, ...] | None = None
    solver: str | None = None
    microseconds: float | None = None
    least_us: float | None = None

    @property
    def receptive_field(self) -> tuple[int | str, ...] | None:
        """Pixels of the input that an element of the result sees along each axis, or ``"whole"`` or ``"unknown"``."""
        if self.seen is None:
            return None
        return tuple(state.size if isinstance(state, Grid) else state.value for state in self.seen)

    @property
    def jump(self) -> tuple[int | float | None, ...] | None:
        """Pixels between the fields of neighbouring elements along each axis."""
        if self.seen is None:
            return None
        return tuple(_number(state.jump) if isinstance(state, Grid) else None for state in self.seen)

    @property
    def offset(self) -> tuple[float | None, ...] | None:
        """Centre of the field of element 0 along each axis; pixel 0 has its centre at 0."""
        if self.seen is None:
            return None
        return tuple(state.start if isinstance(state, Grid) else None for state in self.seen)

    @property
    def roofline(self) -> float | None:
        """Share of the roofline's rate that the estimated time reaches."""
        return None if not self.microseconds or self.least_us is None else self.least_us / self.microseconds

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        found: dict[str, Any] = {"name": self.name, "kind": self.kind}
        found["output"] = None if self.output is None else list(self.output)
        found |= {"parameters": self.parameters, "flops": self.flops, "bytes": self.bytes}
        for name in ("receptive_field", "jump", "offset"):
            values = getattr(self, name)
            found[name] = None if values is None else list(values)
        return found | {"solver": self.solver, "microseconds": self.microseconds, "roofline": self.roofline}


def _number(value: Any) -> int | float:
    return int(value) if value == int(value) else float(value)


def _short(value: float) -> str:
    """Return a count with the unit that a reader takes in at once."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:g}"


def _axes(values: Sequence[Any] | None) -> str:
    """Return values of all axes: one where they are the same."""
    if values is None:
        return "-"
    shown = ["-" if value is None else f"{value:g}" if isinstance(value, int | float) else value for value in values]
    return shown[0] if len(set(shown)) == 1 else "x".join(shown)


_HEADS = ("layer", "kind", "output", "parameters", "FLOPs", "bytes", "sees", "jump", "offset")
_TIMED = ("solver", "us", "roofline")


@dataclass(frozen=True, slots=True)
class Summary:
    """A model layer by layer; ``print`` shows a table, :meth:`to_json` returns plain data.

    Attributes
    ----------
    model : str
        Class of the model.
    input : tuple of tuple of int
        Shapes of its inputs.
    dtype : str
        Type of its parameters.
    gpu : str or None
        The GPU by name that times are of.
    layers : tuple of Row
        In the order of their calls.
    parameters : int
        Elements of all parameters, each once.

    Examples
    --------
    >>> import torch, gpuconv
    >>> summary = gpuconv.summarize(torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3)), (1, 2, 8))
    >>> summary.model, summary.parameters, len(summary.layers)
    ('Sequential', 28, 1)
    """

    model: str
    input: tuple[tuple[int, ...], ...]
    dtype: str
    gpu: str | None
    layers: tuple[Row, ...]
    parameters: int
    image: tuple[int, ...] = field(default=())

    @property
    def totals(self) -> dict[str, Any]:
        """Sums over all layers; times and share of the roofline are those of the convolutions and pools."""
        timed = [row for row in self.layers if row.microseconds is not None]
        found: dict[str, Any] = {"layers": len(self.layers), "parameters": self.parameters}
        found |= {name: sum(getattr(row, name) for row in self.layers) for name in ("flops", "bytes")}
        spent = float(sum(row.microseconds or 0.0 for row in timed))
        least = sum(row.least_us or 0.0 for row in timed)
        found["microseconds"] = spent if self.gpu else None
        found["roofline"] = least / spent if spent else None
        return found

    @property
    def most_expensive(self) -> tuple[Row, ...]:
        """The five layers with the longest estimated time, or, without a GPU, with the most FLOPs."""

        def cost(row: Row) -> float:
            return (row.microseconds or 0.0) if self.gpu else row.flops

        ranked = sorted(self.layers, key=cost, reverse=True)[:_MOST_EXPENSIVE]
        return tuple(row for row in ranked if cost(row))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data that ``json.dump`` writes.

        ``"layers"`` has one object per layer: ``name``, ``kind``, ``output``, ``parameters``, ``flops``, ``bytes``,
        ``receptive_field``, ``jump`` and ``offset`` (lists with an entry per axis of the input, or null),
        ``solver``, ``microseconds`` and ``roofline`` (a share of it).
        """
        found: dict[str, Any] = {"model": self.model, "input": [list(shape) for shape in self.input]}
        found |= {"dtype": self.dtype, "gpu": self.gpu, "layers": [row.to_json() for row in self.layers]}
        found |= {"totals": self.totals, "most_expensive": [row.name for row in self.most_expensive]}
        return found

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for row in self.layers:
            output = "not called" if row.output is None else "x".join(map(str, row.output))
            cells = [
                row.name or "(model)",
                row.kind,
                output,
                f"{row.parameters:,}",
                _short(row.flops),
                _short(row.bytes),
            ]
            cells += [_axes(row.receptive_field), _axes(row.jump), _axes(row.offset)]
            if self.gpu:
                share = "-" if row.roofline is None else f"{row.roofline:.0%}"
                time = "-" if row.microseconds is None else f"{row.microseconds:,.1f}"
                cells += [row.solver or "-", time, share]
            yield tuple(cells)

    def _heads(self) -> tuple[str, ...]:
        return (*_HEADS, *(_TIMED if self.gpu else ()))

    def _notes(self) -> list[str]:
        """Return the lines below the table."""
        totals = self.totals
        lines = [f"{self.parameters:,} parameters, {_short(totals['flops'])} FLOPs, {_short(totals['bytes'])} bytes"]
        if self.gpu:
            share = "" if totals["roofline"] is None else f", {totals['roofline']:.0%} of the roofline"
            time = f"{totals['microseconds']:,.1f} us"
            lines.append(f"convolutions and pools on {self.gpu}, modelled and not measured: {time}{share}")
        by = "estimated time" if self.gpu else "FLOPs"
        ranked = [
            f"{row.name or '(model)'} ({row.microseconds:,.1f} us)" if row.microseconds and self.gpu
            else f"{row.name or '(model)'} ({_short(row.flops)})"
            for row in self.most_expensive
        ]  # fmt: skip
        if ranked:
            lines.append(f"most expensive by {by}: {', '.join(ranked)}")
        return lines

    def _title(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.input)
        return f"{self.model} of {shapes}, {self.dtype}" + (f", on {self.gpu} by name" if self.gpu else "")

    def __str__(self) -> str:
        rows = [self._heads(), *self._cells()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        text = {0, 1, 2, 9}  # columns that are aligned to the left
        lines = [
            "  ".join(
                cell.ljust(width) if column in text else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([self._title(), lines[0], rule, *lines[1:], rule, *self._notes()])

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        table_class, box = import_module("rich.table").Table, import_module("rich.box")
        text = import_module("rich.text").Text
        table = table_class(title=text(self._title()), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column, head in enumerate(self._heads()):
            table.add_column(head, justify="left" if column in (0, 1, 2, 9) else "right")
        for cells in self._cells():
            table.add_row(*(text(cell) for cell in cells))
        yield table
        yield from (text(line) for line in self._notes())

    def plot_receptive_field(self, axis: int = -1) -> Any:
        """Plot what the middle element of each layer's result sees of an axis of the input.

        Parameters
        ----------
        axis
            Which spatial axis of the input; the last by default.

        Returns
        -------
        matplotlib.figure.Figure
            One bar per layer whose field is known or whole, and not that of the layer before; ``savefig`` writes it.

        Raises
        ------
        ModuleNotFoundError
            If matplotlib is not installed.
        ValueError
            If the model has no input with that axis.
        """
        if find_spec("matplotlib") is None:
            raise ModuleNotFoundError("plot_receptive_field needs matplotlib: pip install matplotlib")
        if not -len(self.image) <= axis < len(self.image):
            raise ValueError(f"axis must be one of the {len(self.image)} spatial axes of the input, but got {axis}")
        size = self.image[axis]
        bars: list[tuple[Row, int, int]] = []
        before: State | None = None
        for row in self.layers:
            state = None if row.seen is None else row.seen[axis]
            if state is None or state is before or state == before:
                continue
            before = state
            if state is Seen.WHOLE:
                bars.append((row, 0, size - 1))
            elif isinstance(state, Grid) and state.step:
                middle = int((size - 1) / 2 / state.jump)  # the element above the middle of the input
                low, high = state.at(middle) or (0, -1)
                bars.append((row, low, high))
        figure = import_module("matplotlib.figure").Figure(figsize=(9, max(2.0, 0.22 * len(bars) + 1)), layout="tight")
        axes = figure.add_subplot()
        places = range(len(bars))
        axes.barh(places, [high - low + 1 for _, low, high in bars], left=[low - 0.5 for _, low, _ in bars], height=0.7)
        axes.axvspan(-0.5, size - 0.5, color="0.9", zorder=0)
        axes.set_yticks(places, [f"{row.name}  {_axes(row.receptive_field)}" for row, _, _ in bars], fontsize=7)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(min([-1, *(low for _, low, _ in bars)]) - 2, max([size, *(high for *_, high in bars)]) + 2)
        axes.set_xlabel(f"pixels of the input (grey: its {size})")
        axes.set_title(self._title(), fontsize=9)
        return figure
