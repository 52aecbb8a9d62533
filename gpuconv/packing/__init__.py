"""From problems to a pack: plans for GPUs by name, their launches, each compiled once; entered by the command line.

Nothing here needs a GPU. Imports torch, whose meta tensors stand for arrays, and Triton where it compiles.
"""

from .build import Built, build_pack
from .plans import Variants, gpus_of, launches_of

__all__ = ["Built", "Variants", "build_pack", "gpus_of", "launches_of"]
