"""The C extension that launches: built by the host compiler when it is first needed, kept in Triton's cache."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from subprocess import SubprocessError
from typing import Any

from ..config import launcher, logger

__all__ = ["native", "native_if_built"]

SIGN: Any = None
"""The extension's function of that name, while calls go through the extension."""


@lru_cache(maxsize=1)
def _built() -> tuple[Any, str]:
    """Return the extension, or None and the reason why there is none."""
    source = files(__package__).joinpath("_launch.c").read_text(encoding="utf-8")
    try:
        from triton.runtime.build import compile_module_from_src

        return compile_module_from_src(src=source, name="gpuconv_launch"), ""
    except (RuntimeError, SubprocessError, ImportError, OSError) as error:
        logger.info("launches go through Triton's launchers: the C launcher cannot be built (%s)", error)
        return None, str(error)


def native_if_built() -> Any:
    """Return the extension where this process has it and it is wanted: nothing is compiled, and nothing written."""
    return native() if _built.cache_info().currsize else None


def native() -> Any:
    """Return the extension, or None where it is not wanted or cannot be built.

    Raises
    ------
    RuntimeError
        If ``GPUCONV_LAUNCHER=native`` asks for it and it cannot be built.
    """
    wanted = launcher()
    module, reason = _built() if wanted in ("auto", "native") else (None, "")
    if module is None and wanted == "native":
        raise RuntimeError(f"GPUCONV_LAUNCHER=native, but the C launcher cannot be built: {reason}")
    global SIGN
    SIGN = module.sign if module is not None and _exchanges(module) else None
    return module


def _exchanges(module: Any) -> bool:
    """Let the extension read torch's tensors through DLPack's exchange API; tell whether this torch has that."""
    import torch

    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    return capsule is not None and bool(module.use(capsule))
