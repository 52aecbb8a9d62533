"""Errors of gpuconv and the one way in which their messages are written.

User errors carry the class that PyTorch raises for the same mistake (``RuntimeError``, ``ValueError``, ``TypeError`` or
``NotImplementedError``), so code that catches torch's error catches ours.
"""

from __future__ import annotations

__all__ = ["NoSolverError", "WorkspaceWarning", "invalid"]


class NoSolverError(RuntimeError):
    """No solver can run a problem; the message says why, what to do, and what each solver of the operation lacks."""


class WorkspaceWarning(UserWarning):
    """The reference needs more workspace than the limit, and runs all the same; said once per operation."""


def invalid(
    op: str, argument: str, received: object, required: str, error: type[Exception] = RuntimeError
) -> Exception:
    """Build the exception for a bad argument.

    Parameters
    ----------
    op
        Public name of the operation, for example ``"conv2d"``.
    argument
        Name of the offending argument.
    received
        What the user passed (shown with ``repr``).
    required
        What the argument must be, as the end of the sentence "`argument` must be ...".
    error
        Exception class; by convention the class that torch raises.
    """
    return error(f"{op}: {argument} must be {required}, but got {received!r}")
