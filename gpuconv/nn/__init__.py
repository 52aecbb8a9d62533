"""The modules of ``torch.nn``, computed by gpuconv; entered by models. Importing it registers the torch operators."""

from ..ops import conv as _operators  # noqa: F401
from .conv import *  # noqa: F403
from .conv import __all__ as _conv
from .pool import *  # noqa: F403
from .pool import __all__ as _pool

__all__ = [*_conv, *_pool]
