"""Convolutions and pools of a model that exists, changed from torch's modules to those of :mod:`gpuconv.nn`.

A module stays the object that it is and gets another class. So its parameters, buffers and hooks, its place in the
model, the names of its ``state_dict`` and whoever else holds it (tied modules, lists, closures, hooks) have what they
had before, and the way back is as short.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import invalid
from .families import name_of, why_not
from .reclass import change_class, fits, lazily_became, ours_for, plain_class

__all__ = ["Replacement", "Report", "replace_modules"]

Module = Any
Where = Callable[[str, Module], bool] | Iterable[str | type] | str | type

_OP = "replace_modules"


@dataclass(frozen=True, slots=True)
class Replacement:
    """What became of one module.

    Attributes
    ----------
    name
        Of the module, as in ``model.named_modules()``; empty for the model itself.
    type
        Its class before.
    replaced
        Whether it was replaced, or would be without `dry_run`.
    reason
        Why not; empty where it was.
    also
        Its other names, where the model has it in several places.

    Examples
    --------
    >>> import torch, gpuconv
    >>> [entry] = gpuconv.replace_modules(torch.nn.Sequential(torch.nn.MaxPool1d(2)))
    >>> entry.name, entry.type.__name__, entry.replaced
    ('0', 'MaxPool1d', True)
    """

    name: str
    type: type
    replaced: bool
    reason: str = ""
    also: tuple[str, ...] = ()


class Report:
    """What :func:`replace_modules` did, module by module, and the way back.

    ``len`` is the number of modules, iteration yields a :class:`Replacement` for each, and ``str`` is a table.

    Attributes
    ----------
    entries
        A :class:`Replacement` for each module, in the order of the model.
    dry_run
        Whether nothing was changed.

    Examples
    --------
    >>> import torch, gpuconv
    >>> model = torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool1d(2))
    >>> report = gpuconv.replace_modules(model, where=[torch.nn.Conv1d])
    >>> print(report)
    replaced 1 of 2 modules
    name  type       replaced  reason
    0     Conv1d     yes
    2     MaxPool1d  no        not chosen by where
    >>> len(report), [entry.name for entry in report if entry.replaced]
    (2, ['0'])
    >>> report.undo(), report.undo()
    (1, 0)
    """

    def __init__(self, rows: Iterable[tuple[Replacement, str]], dry_run: bool) -> None:
        rows = tuple(rows)
        self.entries, self.dry_run = tuple(entry for entry, _ in rows), dry_run
        self._shown = tuple(shown for _, shown in rows)
        self._changed: list[tuple[Module, type, type]] = []

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Replacement]:
        return iter(self.entries)

    def __repr__(self) -> str:
        return f"<{self._summary()}>"

    def __str__(self) -> str:
        rows = [("name", "type", "replaced", "reason")]
        for entry, shown in zip(self.entries, self._shown):
            names = ", ".join(name or "(the model)" for name in (entry.name, *entry.also))
            rows.append((names, shown, "yes" if entry.replaced else "no", entry.reason))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
        return "\n".join([self._summary(), *lines]) if self.entries else self._summary()

    def _summary(self) -> str:
        count = sum(entry.replaced for entry in self.entries)
        verb = "would replace" if self.dry_run else "replaced"
        return f"{verb} {count} of {len(self)} modules"

    def undo(self) -> int:
        """Give the modules that were replaced the class that they had, and return how many.

        Parameters keep the values that they have by now. Modules that were not replaced by this call, copies of the
        model, and modules whose class was changed by something else since are left alone. What was parametrized or
        lost its parametrization in between stays so. A second call does nothing.
        """
        count = 0
        while self._changed:
            module, before, after = self._changed.pop()
            if plain_class(module) is not after:
                before, after = lazily_became(before) or before, lazily_became(after) or after
            if plain_class(module) is after:
                change_class(module, before)
                count += 1
        return count


def replace_modules(model: Module, *, where: Where | None = None, dry_run: bool = False) -> Report:
    """Change the convolutions and pools of a model, in place, from torch's modules to those of ``gpuconv.nn``.

    Each stays the same object, with its parameters, buffers, hooks, parametrizations and flags, and gets the class of
    the same name in ``gpuconv.nn``; the model itself too, where it is one of these modules. The ``state_dict`` keeps
    its keys, order and versions. Training goes on with the same optimizer, and the model can be copied, pickled,
    compiled and exported. Subclasses of torch's modules are replaced, by a subclass of theirs, where a call of them
    runs torch's methods alone. Everything else stays as it is, and the report says why.

    Functions such as ``torch.nn.functional.conv2d`` that a model calls are no modules and stay torch's. So do modules
    that are held in plain lists alone. ``torch.jit.script``, and tools that go by torch's exact classes (fusion in
    ``torch.fx``, quantization), want the model as it was: use them before, or after ``undo``. FSDP and tensor
    parallelism come after it. On a CPU it is the NumPy backend that computes, in more time than torch takes.

    Parameters
    ----------
    model
        A ``torch.nn.Module``.
    where
        Which of the modules: a function of name and module that returns a bool, or names and classes. A name stands for
        the module and all inside it. By default all of them.
    dry_run
        Whether to change nothing and only report.

    Returns
    -------
    Report
        For each module of these families whether it was replaced or why not; ``report.undo()`` is the way back.

    Raises
    ------
    TypeError
        Where `model` is no ``torch.nn.Module``, and for `where` of another type.
    ValueError
        For a name in `where` that no module has.

    Examples
    --------
    >>> import torch, gpuconv
    >>> class Padded(torch.nn.Conv2d):
    ...     def forward(self, x):
    ...         return super().forward(torch.nn.functional.pad(x, (1, 1)))
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), Padded(8, 8, 3), torch.nn.AvgPool2d(2)).eval()
    >>> x = torch.randn(1, 3, 16, 16)
    >>> before = model(x)
    >>> report = gpuconv.replace_modules(model)
    >>> print(report)
    replaced 2 of 3 modules
    name  type       replaced  reason
    0     Conv2d     yes
    1     Padded     no        Padded has a forward of its own
    2     AvgPool2d  yes
    >>> isinstance(model[0], gpuconv.nn.Conv2d)
    True
    >>> torch.testing.assert_close(model(x), before)
    >>> report.undo()
    2
    >>> type(model[0]) is torch.nn.Conv2d
    True
    """
    if not isinstance(model, torch.nn.Module):
        raise invalid(_OP, "model", type(model).__name__, "a torch.nn.Module", TypeError)
    found = list(_walk(model))
    chosen = _chooser(where, {name for _, names in found for name in names})
    rows, changes = [], []
    for module, names in found:
        reason = why_not(module)
        if reason == "":
            continue
        ours: type | None = None
        if not chosen(names, module):
            reason = "not chosen by where"
        elif reason is None:
            ours, reason = _target(module)
        entry = Replacement(names[0], type(module), ours is not None, reason or "", tuple(names[1:]))
        rows.append((entry, name_of(module)))
        if ours is not None:
            changes.append((module, plain_class(module), ours))
    report = Report(rows, dry_run)
    if not dry_run:
        for module, before, after in changes:
            change_class(module, after)
            report._changed.append((module, before, after))
    return report


def _target(module: Module) -> tuple[type | None, str | None]:
    """Return the class that replaces that of a module, or None and the reason."""
    try:
        ours = ours_for(module)
    except TypeError as error:
        return None, f"{type(module).__name__} cannot have a subclass: {error}"
    reason = fits(module, ours)
    return (None, reason) if reason else (ours, None)


def _walk(model: Module) -> Iterator[tuple[Module, list[str]]]:
    """Yield each module of a model once, in order, with all its names."""
    found: dict[int, tuple[Module, list[str]]] = {}
    above: set[int] = set()

    def visit(module: Module, name: str) -> None:
        found.setdefault(id(module), (module, []))[1].append(name)
        if id(module) in above:  # a child that has its parent as a child
            return
        above.add(id(module))
        for key, child in module._modules.items():
            if child is not None:
                visit(child, f"{name}.{key}" if name else key)
        above.remove(id(module))

    visit(model, "")
    yield from found.values()


def _chooser(where: Where | None, known: set[str]) -> Callable[[list[str], Module], bool]:
    """Return the function of a module's names and the module that says whether it is chosen."""
    if where is None:
        return lambda names, module: True
    if callable(where) and not isinstance(where, type):
        predicate: Callable[[str, Module], bool] = where
        return lambda names, module: any(predicate(name, module) for name in names)
    if not isinstance(where, Iterable) and not isinstance(where, type):
        raise invalid(_OP, "where", where, "a function, or names and classes", TypeError)
    items = (where,) if isinstance(where, (str, type)) else tuple(where)
    for item in items:
        if not isinstance(item, (str, type)):
            raise invalid(_OP, "where", item, "a function, or names and classes", TypeError)
        if isinstance(item, str) and item not in known:
            raise invalid(_OP, "where", item, "a name in model.named_modules()", ValueError)
    classes = tuple(item for item in items if isinstance(item, type))
    inside = [item for item in items if isinstance(item, str)]

    def choose(names: list[str], module: Module) -> bool:
        named = any(name == item or name.startswith(f"{item}.") or not item for name in names for item in inside)
        return named or isinstance(module, classes)

    return choose
