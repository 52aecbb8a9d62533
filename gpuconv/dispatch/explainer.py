"""A call is explained instead of run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..costs import device_of_name, on_gpu
from ..errors import NoSolverError
from ..problem import Problem, placed
from .execution import observed
from .explanation import Explanation
from .selection import COMPOSED, backends, candidates, planned

__all__ = ["explain"]


def _explanation(problem: Problem, backend: str | None) -> Explanation:
    found = candidates(problem, backend)
    try:
        plan = planned(problem, backend)
        backend_of = plan.solver.id.partition(".")[0]
        composed = plan.solver in COMPOSED.get(backend_of, ())
        origin = None if composed else backends()[backend_of].origin(plan)
        return Explanation(problem, tuple(found), plan, origin=origin)
    except NoSolverError as error:
        return Explanation(problem, tuple(found), None, str(error).partition("\n")[0])


def _of_torch(problem: Problem, backend: str | None) -> Explanation:
    """Explain a problem on a GPU by name: of torch tensors, whatever stands for them here."""
    return _explanation(placed(problem, array="torch"), backend)


def explain(fn: Callable[..., Any], *args: Any, gpu: str | None = None, **kwargs: Any) -> Explanation:
    """Say what ``fn(*args, **kwargs)`` would run, without running it.

    Parameters
    ----------
    fn
        A function of gpuconv that takes arrays, for example ``gpuconv.conv2d``.
    *args, **kwargs
        Its arguments; bad ones raise what the call would raise.
    gpu
        Name of a GPU that need not be here, such as ``"h200"``: what the call would run there on torch tensors of
        these shapes, by the cost model with the constants that are shipped for that GPU. Neither what was tuned nor
        what is installed here counts, the newest Triton is taken to be there; arrays may be of any library and on any
        device, ``meta`` included. None: what the call would run here.

    Returns
    -------
    Explanation
        The problem, sizes, FLOPs, bytes, and each solver with its estimate or the reason why it cannot run. Of a call
        that runs several problems, as ``gpuconv.separable_conv2d`` does, those of the first; `steps` has all of them.

    Raises
    ------
    TypeError
        If `fn` is not a function of gpuconv that reaches the dispatcher, or `gpu` is no string.
    ValueError
        If `gpu` is none of the GPUs whose constants are shipped; the message lists them.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> gpuconv.explain(gpuconv.conv2d, x, w).solver
    'numpy.conv.fprop.im2col'
    >>> gpuconv.explain(gpuconv.max_pool2d, x, 2, gpu="h200").solver
    'triton.pool.max.fprop.tiled'
    """
    if not callable(fn):
        wanted = "a function of gpuconv, and its arguments follow it, as in explain(gpuconv.conv2d, x, w)"
        raise TypeError(f"explain: fn must be {wanted}; but got {type(fn).__name__}")
    if gpu is None:
        with observed(_explanation):
            explanation = fn(*args, **kwargs)
    else:
        with on_gpu(device_of_name(gpu)), observed(_of_torch):
            explanation = fn(*args, **kwargs)
    if not isinstance(explanation, Explanation):
        raise TypeError(f"explain: fn must be a function of gpuconv that runs one problem, but got {fn!r}")
    return explanation
