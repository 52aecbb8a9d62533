"""What modules take beyond PyTorch's: keyword-only arguments and named padding, checked, kept and shown.

Importing this module imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from ..config import validate_backend
from ..errors import invalid
from ..normalize import ACTIVATIONS, PRECISIONS, ROUNDINGS, check_choice, pad_pairs

__all__ = ["CONV_PADDINGS", "POOL_PADDINGS", "Extended", "check_extras", "constructor"]

POOL_PADDINGS = ("valid", "same", "same_upper", "same_lower")
CONV_PADDINGS = (*POOL_PADDINGS, "causal")

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


class Extended(torch.nn.Module):
    """A module whose ``__init__`` came from :func:`constructor`."""

    _beyond: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        beyond = getattr(vars(cls).get("__init__"), "beyond", None)
        if beyond is not None:
            cls._beyond = tuple(beyond)
            for name, default in beyond.items():  # modules that were pickled without an argument have it from here
                setattr(cls, name, default)

    def extra_repr(self) -> str:
        """Return PyTorch's own, and after it the arguments beyond PyTorch's that were given."""
        rows = [super().extra_repr()]
        rows += [f"{name}={getattr(self, name)!r}" for name in self._beyond if name in self.__dict__]
        return ", ".join(filter(None, rows))


def constructor(base: Any, paddings: tuple[str, ...] = (), **beyond: Any) -> Callable[..., None]:
    """Return the ``__init__`` of a subclass of `base`, a module of PyTorch's, that takes more.

    Parameters
    ----------
    base
        The module.
    paddings
        Names that `padding` may be.
    beyond
        Keyword-only arguments after PyTorch's, and their defaults. What differs from its default becomes an attribute.
    """
    theirs = inspect.signature(base.__init__)
    ours = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in beyond.items()]

    @wraps(base.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name, default) for name, default in beyond.items()}
        try:
            bound = theirs.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{base.__name__}.__init__(): {error}") from None
        padding = bound.arguments.get("padding", given.get("padding"))
        _check(base, given, padding, paddings)
        hidden = isinstance(padding, str) and "padding" in bound.arguments and not _of_torch(base, padding)
        if hidden:
            bound.arguments["padding"] = 0
        base.__init__(*bound.args, **bound.kwargs)
        if hidden:
            self.padding = padding
        for name, value in given.items():
            if value != beyond[name]:
                setattr(self, name, value)

    made: Any = __init__
    made.beyond = beyond
    made.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), *ours])
    return __init__


def _of_torch(base: Any, padding: str) -> bool:
    """Tell whether PyTorch's constructor takes a name for the padding."""
    return issubclass(base, _CONVOLUTIONS) and padding in ("valid", "same")


def check_extras(op: str, given: dict[str, Any], activations: tuple[str, ...] = ACTIVATIONS) -> None:
    """Check the keyword-only arguments that modules share, of those that are given."""
    for argument, choices in (("activation", activations), ("precision", PRECISIONS)):
        if given.get(argument) is not None:
            check_choice(op, argument, given[argument], choices)
    if "rounding" in given:
        check_choice(op, "rounding", given["rounding"], ROUNDINGS)
    if given.get("backend") is not None:
        validate_backend(given["backend"], f"{op}: backend")


def _check(base: Any, given: dict[str, Any], padding: Any, paddings: tuple[str, ...]) -> None:
    """Check what PyTorch's constructor does not know."""
    op = base.__name__
    check_extras(op, given)
    if not isinstance(padding, str):
        ndim = int(op[-2]) if op.endswith("d") and op[-2].isdigit() else 2  # Fold and Unfold are of images
        pad_pairs(op, "padding", padding, ndim)
    elif padding not in paddings:
        names = f"a size or one of {', '.join(map(repr, paddings))}" if paddings else "a size"
        raise invalid(op, "padding", padding, names, ValueError)
