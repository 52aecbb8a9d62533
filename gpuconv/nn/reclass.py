"""Another class for a module that exists: parameters, hooks, and whoever holds the module keep what they have.

Importing this module imports torch.
"""

from __future__ import annotations

import copyreg
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from .families import FAMILIES, torch_class

__all__ = ["change_class", "fits", "lazily_became", "ours_for", "plain_class"]

Module = Any

_MARK = "_gpuconv_replaces"

plain_class: Callable[[Module], type] = type_before_parametrizations
"""The class of a module, less the one that ``torch.nn.utils.parametrize`` made for it alone."""


def ours_for(module: Module) -> type:
    """Return the class that replaces that of a module: one of ``gpuconv.nn``, or a subclass of it and of the module's.

    Raises
    ------
    TypeError
        Where the module's class cannot have the subclass.
    """
    cls, theirs = plain_class(module), torch_class(module)
    assert theirs is not None
    return FAMILIES[theirs] if cls is theirs else _joined(cls)


def _joined(cls: Any) -> Any:
    """Return the subclass of a subclass of torch's module and of ours, one and the same for all modules."""
    made = next((sub for sub in cls.__subclasses__() if vars(sub).get(_MARK) is cls), None)
    if made is not None:
        return made
    theirs = next(base for base in cls.__mro__ if base in FAMILIES)
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    names |= {_MARK: cls, "__reduce_ex__": _reduce_ex}
    return types.new_class(cls.__name__, (cls, FAMILIES[theirs]), exec_body=lambda space: space.update(names))


def _reduce_ex(self: Module, protocol: Any) -> Any:
    """Pickle and copy by the class that was replaced, which can be imported."""
    made: Any = next(base for base in type(self).__mro__ if _MARK in vars(base))
    reduced = super(made, self).__reduce_ex__(max(int(protocol), 2))
    if reduced[0] is copyreg.__newobj__ and reduced[1] == (made,):  # type: ignore[attr-defined]
        return (_remake, (vars(made)[_MARK],), *reduced[2:])
    return reduced


def _remake(cls: type) -> Module:
    """Return an empty module of the class that replaces `cls`: what a pickle starts from."""
    made = _joined(cls)
    return made.__new__(made)


def change_class(module: Module, cls: type) -> None:
    """Give a module another class; of a parametrized module the one below the class that torch made for it.

    Raises
    ------
    TypeError
        Where the objects of both are laid out differently.
    """
    if is_parametrized(module):
        # Copies of the module share torch's class, and removing a parametrization looks for names and for the first
        # base in the very class of the module: so it is made again.
        made = type(module)
        names = {name: value for name, value in vars(made).items() if name not in ("__dict__", "__weakref__")}
        cls = types.new_class(made.__name__, (cls,), exec_body=lambda space: space.update(names))
    object.__setattr__(module, "__class__", cls)


def fits(module: Module, cls: type) -> str | None:
    """Return why a module cannot have another class, or None. It has its own afterwards."""
    before = type(module)
    try:
        change_class(module, cls)
    except TypeError as error:
        return f"its class cannot change: {error}"
    object.__setattr__(module, "__class__", before)
    return None


def lazily_became(cls: type) -> type | None:
    """Return what a lazy module becomes at its first call, or None where `cls` is not lazy."""
    found: type | None = getattr(cls, "cls_to_become", None)
    return found if issubclass(cls, torch.nn.modules.lazy.LazyModuleMixin) else None
