"""gpuconv: convolution, transposed convolution and pooling for PyTorch, CuPy and NumPy arrays.

The functions have the names, arguments and results of ``torch.nn.functional``. ``gpuconv.explain`` says which kernel
a call runs and why.
"""

from .config import use_backend, use_tuning
from .dispatch import Explanation, explain, record_problems
from .errors import NoSolverError, WorkspaceWarning
from .functional import *  # noqa: F403
from .functional import __all__ as _functional
from .gradients import *  # noqa: F403
from .gradients import __all__ as _gradients
from .pooling import *  # noqa: F403
from .pooling import __all__ as _pooling

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "NoSolverError",
    "WorkspaceWarning",
    "explain",
    "record_problems",
    "use_backend",
    "use_tuning",
    *_functional,
    *_gradients,
    *_pooling,
]
