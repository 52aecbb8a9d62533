"""From problems to a pack: plans for a GPU by name, their launches, each compiled once in processes of its own.

Nothing here needs a GPU. Imports torch, whose meta tensors stand for arrays, and Triton where it compiles.
"""

from .build import Built, build_pack
from .plans import Variants, gpus_of, launches_of

__all__ = ["Built", "Variants", "build_pack", "gpus_of", "launches_of"]
