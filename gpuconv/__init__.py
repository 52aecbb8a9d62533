"""Convolution, transposed convolution and pooling for PyTorch, CuPy and NumPy arrays; entered by everyone.

The functions have the names, arguments and results of ``torch.nn.functional``. ``gpuconv.explain`` says which kernel
a call runs and why, ``gpuconv.summarize`` describes a whole model; both know GPUs that are not here by name.
``gpuconv.replace_modules`` has a model of PyTorch's computed by gpuconv, and with ``gpuconv.onnx_translations`` torch
exports one. ``gpuconv.nn`` has the modules, ``gpuconv.shapes`` the arithmetic of sizes, ``gpuconv.tuning`` times
configs on a GPU, ``gpuconv.solvers`` takes solvers of others: each is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import functional
from .config import VERSION, use_backend, use_tuning
from .dispatch import TUNERS, Explanation, explain, record_problems
from .errors import NoSolverError, WorkspaceWarning
from .functional import *  # noqa: F403
from .problem import Problem
from .solvers import register_solver

if TYPE_CHECKING:
    from .export import onnx_translations
    from .summary import Summary, summarize

__version__ = VERSION

_ROOMS = ("export", "nn", "shapes", "solvers", "summary", "tuning")
_LATE = {"Summary": "summary", "onnx_translations": "export", "replace_modules": "nn", "summarize": "summary"}
"""Names that a room has, which is imported when one of them is first asked for."""

__all__ = [
    "Explanation",
    "NoSolverError",
    "Summary",
    "WorkspaceWarning",
    "explain",
    "onnx_translations",
    "record_problems",
    "register_solver",
    "summarize",
    "use_backend",
    "use_tuning",
    *functional.__all__,
]


def __getattr__(name: str) -> Any:
    """Import a room when it, or a name of it, is first asked for (PEP 562)."""
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _LATE:
        return getattr(import_module(f".{_LATE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, *_LATE})


def _tune(problem: Problem) -> None:
    """Tune a problem that a call meets; the room is imported while tuning is on, not before."""
    from .tuning import consider

    consider(problem)


TUNERS.append(_tune)
