"""The public functions, with the signatures of ``torch.nn.functional``; entered by everyone."""

from .causal import *  # noqa: F403
from .causal import __all__ as _causal
from .columns import *  # noqa: F403
from .columns import __all__ as _columns
from .conv import *  # noqa: F403
from .conv import __all__ as _conv
from .conv_grad import *  # noqa: F403
from .conv_grad import __all__ as _conv_grad
from .deform import *  # noqa: F403
from .deform import __all__ as _deform
from .pool import *  # noqa: F403
from .pool import __all__ as _pool
from .pool_adaptive import *  # noqa: F403
from .pool_adaptive import __all__ as _pool_adaptive
from .pool_adaptive_backward import *  # noqa: F403
from .pool_adaptive_backward import __all__ as _pool_adaptive_backward
from .pool_backward import *  # noqa: F403
from .pool_backward import __all__ as _pool_backward
from .pool_fractional import *  # noqa: F403
from .pool_fractional import __all__ as _pool_fractional
from .scaled import *  # noqa: F403
from .scaled import __all__ as _scaled
from .separable import *  # noqa: F403
from .separable import __all__ as _separable

__all__ = [
    *_causal,
    *_columns,
    *_conv,
    *_conv_grad,
    *_deform,
    *_pool,
    *_pool_adaptive,
    *_pool_adaptive_backward,
    *_pool_backward,
    *_pool_fractional,
    *_scaled,
    *_separable,
]
