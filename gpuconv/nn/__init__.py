"""Modules, those of ``torch.nn`` and a few beyond; entered by models. Importing it registers the torch operators."""

from ..ops import conv as _operators  # noqa: F401
from .causal import *  # noqa: F403
from .causal import __all__ as _causal
from .conv import *  # noqa: F403
from .conv import __all__ as _conv
from .deform import *  # noqa: F403
from .deform import __all__ as _deform
from .lazy import *  # noqa: F403
from .lazy import __all__ as _lazy
from .pool import *  # noqa: F403
from .pool import __all__ as _pool
from .replace import *  # noqa: F403
from .replace import __all__ as _replace
from .separable import *  # noqa: F403
from .separable import __all__ as _separable

__all__ = [*_causal, *_conv, *_deform, *_lazy, *_pool, *_replace, *_separable]
