"""gpuconv: convolution, transposed convolution and pooling for PyTorch, CuPy and NumPy arrays.

The functions have the names, arguments and results of ``torch.nn.functional``. ``gpuconv.explain`` says which kernel
a call runs and why.
"""

from .config import use_backend, use_tuning
from .dispatch.execution import record_problems
from .dispatch.explanation import Explanation, explain
from .errors import NoSolverError
from .functional.conv import *  # noqa: F403
from .functional.conv import __all__ as _functional
from .functional.conv_grad import *  # noqa: F403
from .functional.conv_grad import __all__ as _gradients
from .functional.pool import *  # noqa: F403
from .functional.pool import __all__ as _pooling

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "NoSolverError",
    "explain",
    "record_problems",
    "use_backend",
    "use_tuning",
    *_functional,
    *_gradients,
    *_pooling,
]
