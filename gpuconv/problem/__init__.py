"""Problems: frozen, hashable descriptions of one call, and the call itself; entered by every room but shapes.

Axis letters never change meaning between passes. For a convolution, input ``x`` is ``N C D H W``, filter ``w`` is
``K C/G T R S`` and output ``y`` is ``N K O P Q``; 1-D uses the last letter of each, 2-D the last two. A transposed
convolution is described by the letters of the convolution whose data gradient it is: its argument is ``y`` and its
result is ``x``.
"""

from .call import Call, Prepared, Problem, placed, steps_of
from .composed import ScaledProblem, SeparableProblem
from .conv import ConvProblem
from .deform import DeformProblem
from .pool import PoolProblem
from .sizes import itemsize, offset_dtype

__all__ = [
    "Call",
    "ConvProblem",
    "DeformProblem",
    "PoolProblem",
    "Prepared",
    "Problem",
    "ScaledProblem",
    "SeparableProblem",
    "itemsize",
    "offset_dtype",
    "placed",
    "steps_of",
]
