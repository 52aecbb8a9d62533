"""Settings: environment variables and the backend chosen for the current context.

========================== ==================== ===================================================================
Variable                   Default              Effect
========================== ==================== ===================================================================
``GPUCONV_BACKEND``        ``auto``             Backend (or solver id) forced for every call without ``backend=``.
``GPUCONV_WORKSPACE``      ``268435456``        Largest workspace of one call, in bytes. NumPy's solvers work in pieces
                                                under it, and go over it with a warning where no piece is so small.
``GPUCONV_LAUNCHER``       ``auto``             What repeats a launch: ``native`` (a C extension, built at first use),
                                                ``python`` (Triton's own launcher, without its look-up), ``triton``
                                                (nothing is repeated), or ``auto``: ``native`` where that can be built,
                                                else ``python``.
``GPUCONV_LOG``            ``WARNING``          Level of the ``gpuconv`` logger (``INFO`` names each solver once).
``GPUCONV_TUNE``           ``read``             ``read``: configs come from shipped tables and the user's tuned cache;
                                                ``on``: new problems are also timed, for later processes; ``off``:
                                                defaults alone.
``GPUCONV_CACHE_DIR``      see effect           Folder of what tuning found; default ``$XDG_CACHE_HOME/gpuconv``, or
                                                ``~/.cache/gpuconv``.
``GPUCONV_PACKS``          none                 Folders of packs of compiled kernels, separated as in ``PATH``; asked
                                                before those of the user's data folder and installed ones.
``GPUCONV_PACKS_TRUST``    ``0``                ``1``: also packs that others may write.
``GPUCONV_PACKS_ONLY``     ``0``                ``1``: nothing is compiled for a GPU; a launch that no pack has raises.
========================== ==================== ===================================================================

Variables are read when they are first needed and validated then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = [
    "BACKENDS",
    "TUNING_MODES",
    "VERSION",
    "cache_directory",
    "forced_backend",
    "forced_by",
    "interpreting",
    "launcher",
    "logger",
    "pack_folders",
    "packs_only",
    "settings",
    "tuning_mode",
    "use_backend",
    "use_tuning",
    "validate_backend",
    "workspace_limit",
]

VERSION = "0.1.0"
"""Of this library; ``pyproject.toml`` states the same."""

BACKENDS = ("triton", "cupy", "numpy")
"""Names of the backends, in the order in which CUDA tensors try them."""

LAUNCHERS = ("auto", "native", "python", "triton")
"""Names of what launches kernels again, see ``GPUCONV_LAUNCHER``."""

_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

TUNING_MODES = ("read", "on", "off")
"""Values of ``GPUCONV_TUNE``."""

_backend: ContextVar[str | None] = ContextVar("gpuconv_backend", default=None)
_tune: ContextVar[bool | None] = ContextVar("gpuconv_tune", default=None)

logger = logging.getLogger("gpuconv")
logger.addHandler(logging.NullHandler())


def validate_backend(name: str, source: str) -> str | None:
    """Return the backend or solver id that `name` forces, or ``None`` for ``"auto"``.

    Raises
    ------
    TypeError
        If `name` is not a string.
    ValueError
        If its first word is not a backend. Whether a full solver id exists is decided by the dispatcher, which knows
        them.
    """
    if not isinstance(name, str):
        raise TypeError(f"{source} must be a string, but got {name!r}")
    if name == "auto":
        return None
    if name.partition(".")[0] not in BACKENDS:
        from difflib import get_close_matches  # for errors alone: it takes milliseconds to import

        choices = ", ".join(repr(choice) for choice in ("auto", *BACKENDS))
        word, dot, rest = name.partition(".")
        near = get_close_matches(word.strip().lower(), BACKENDS if dot else ("auto", *BACKENDS), 1)
        meant = "".join(f" (did you mean {best + dot + rest!r}?)" for best in near)
        raise ValueError(
            f"{source} must be one of {choices}, or a solver id that starts with one; but got {name!r}{meant}"
        )
    return name


@lru_cache(maxsize=8)
def _parse_backend_variable(value: str) -> str | None:
    return validate_backend(value, "environment variable GPUCONV_BACKEND")


def forced_backend(argument: str | None = None) -> str | None:
    """Return the backend that this call must use, or ``None`` when the dispatcher is free to choose.

    The argument ``backend=`` wins over :func:`use_backend`, which wins over ``GPUCONV_BACKEND``.
    """
    if argument is not None:
        return validate_backend(argument, "backend")
    chosen = _backend.get()
    if chosen is not None:
        return validate_backend(chosen, "use_backend")
    return _parse_backend_variable(os.environ.get("GPUCONV_BACKEND") or "auto")


def forced_by(name: str) -> str:
    """Say for an error what forces a backend or solver: the variable, the context, or else the argument."""
    if _backend.get() == name:
        return f"use_backend({name!r})"
    if os.environ.get("GPUCONV_BACKEND") == name:
        return f"GPUCONV_BACKEND={name}"
    return f"backend={name!r}"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend inside a ``with`` block: ``"triton"``, ``"cupy"``, ``"numpy"``, a solver id, or ``"auto"``.

    A forced backend never falls back: a problem that it cannot run raises :class:`gpuconv.NoSolverError` with the
    reason. The choice is held in a context variable: it is local to the thread and to the asyncio task. The backward
    pass uses what was chosen in the forward pass. Compiled code does not see it: there ``backend=`` and
    ``GPUCONV_BACKEND`` count.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> with gpuconv.use_backend("numpy"):
    ...     gpuconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 3))).shape
    (1, 1, 2)
    """
    validate_backend(name, "use_backend")
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


@lru_cache(maxsize=8)
def _parse_workspace(value: str) -> int:
    try:
        limit = int(value)
    except ValueError:
        limit = -1
    if limit < 0:
        raise ValueError(
            f"environment variable GPUCONV_WORKSPACE must be a non-negative number of bytes, but got {value!r}"
        )
    return limit


def workspace_limit() -> int:
    """Return the largest workspace of one call in bytes (``GPUCONV_WORKSPACE``, 256 MiB by default)."""
    return _parse_workspace(os.environ.get("GPUCONV_WORKSPACE") or str(256 << 20))


@lru_cache(maxsize=8)
def _parse_launcher(value: str) -> str:
    if value not in LAUNCHERS:
        choices = ", ".join(LAUNCHERS)
        raise ValueError(f"environment variable GPUCONV_LAUNCHER must be one of {choices}, but got {value!r}")
    return value


def launcher() -> str:
    """Return what launches kernels again (``GPUCONV_LAUNCHER``): ``auto``, ``native``, ``python`` or ``triton``."""
    return _parse_launcher(os.environ.get("GPUCONV_LAUNCHER") or "auto")


def _raw_environment() -> tuple[Callable[[Any], Any], tuple[Any, ...]]:
    """Return what looks a variable up, and the names of ours as it wants them.

    ``os.environ`` encodes and decodes at each look-up, which takes longer than a launch; on POSIX it keeps bytes.
    """
    names = ("GPUCONV_BACKEND", "GPUCONV_WORKSPACE", "GPUCONV_LAUNCHER")
    kept = getattr(os.environ, "_data", None)
    if os.name == "posix" and isinstance(kept, dict):
        return kept.get, tuple(map(os.fsencode, names))
    return os.environ.get, names


_look_up, (_BACKEND, _WORKSPACE, _LAUNCHER) = _raw_environment()


def settings() -> tuple[Any, ...]:
    """Return every setting that decides how a call runs, as it stands there: neither parsed nor validated."""
    return _backend.get(), _look_up(_BACKEND), _look_up(_WORKSPACE), _look_up(_LAUNCHER)


def cache_directory() -> Path:
    """Return the folder of what tuning found: ``GPUCONV_CACHE_DIR``, or ``gpuconv`` in the user's cache directory."""
    chosen = os.environ.get("GPUCONV_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or ""
    # The XDG specification has relative paths ignored.
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "gpuconv"


@lru_cache(maxsize=8)
def _absolute(folders: str) -> tuple[str, ...]:
    """Return folders of a list as in ``PATH``, seen from the current one at the first look: later it may be another."""
    try:
        return tuple(os.path.abspath(os.path.expanduser(name)) for name in folders.split(os.pathsep) if name)
    except OSError:  # there is no current folder any more
        return tuple(name for name in folders.split(os.pathsep) if os.path.isabs(name))


def _switch(name: str) -> bool:
    """Return whether a variable that is 0 or 1 is 1."""
    value = os.environ.get(name) or "0"
    if value not in ("0", "1"):
        raise ValueError(f"environment variable {name} must be 0 or 1, but got {value!r}")
    return value == "1"


def pack_folders() -> tuple[tuple[str, ...], bool]:
    """Return the folders of ``GPUCONV_PACKS``, absolute, and whether packs that others may write are taken."""
    return _absolute(os.environ.get("GPUCONV_PACKS", "")), _switch("GPUCONV_PACKS_TRUST")


def packs_only() -> bool:
    """Tell whether nothing may be compiled for a GPU (``GPUCONV_PACKS_ONLY=1``)."""
    return _switch("GPUCONV_PACKS_ONLY")


@lru_cache(maxsize=1)
def interpreting() -> bool:
    """Tell whether Triton interprets kernels (``TRITON_INTERPRET``); like Triton, it looks once in a process."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@lru_cache(maxsize=8)
def _parse_tuning(value: str) -> str:
    if value not in TUNING_MODES:
        choices = ", ".join(repr(choice) for choice in TUNING_MODES)
        raise ValueError(f"environment variable GPUCONV_TUNE must be one of {choices}, but got {value!r}")
    return value


def tuning_mode() -> str:
    """Return ``"read"``, ``"on"`` or ``"off"``: what :func:`use_tuning` or ``GPUCONV_TUNE`` says of tuned configs."""
    mode = _parse_tuning(os.environ.get("GPUCONV_TUNE") or "read")
    chosen = _tune.get()
    if chosen is None:
        return mode
    return "on" if chosen else "read" if mode == "on" else mode


@contextmanager
def use_tuning(tune: bool) -> Iterator[None]:
    """Time the configs of every new problem inside a ``with`` block (``True``), or of none (``False``).

    A problem is timed at its first call, which takes seconds, and what was found is written to the user's cache. Later
    processes read it: results of this one stay what they are. Never during CUDA graph capture or compilation, and only
    for kernels on a GPU. The choice is held in a context variable, as that of :func:`use_backend`; it wins over
    ``GPUCONV_TUNE``.

    Raises
    ------
    TypeError
        If `tune` is not a bool.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> with gpuconv.use_tuning(True):  # on the CPU there is nothing to choose
    ...     gpuconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 3))).shape
    (1, 1, 2)
    """
    if not isinstance(tune, bool):
        raise TypeError(f"use_tuning: tune must be True or False, but got {tune!r}")
    token = _tune.set(tune)
    try:
        yield
    finally:
        _tune.reset(token)


def _set_log_level() -> None:
    level = os.environ.get("GPUCONV_LOG")
    if not level:
        return
    if level.upper() not in _LOG_LEVELS:
        raise ValueError(f"environment variable GPUCONV_LOG must be one of {', '.join(_LOG_LEVELS)}, but got {level!r}")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(level.upper())


_set_log_level()
