"""The forms that the Hopper kernels come in: who multiplies what, with which registers, and how many stages fit.

A form is what has been compiled and found to spill nothing (tests/codegen/hopper_forms.py); a config is a form, the
channels of a step and, for tiles and strips, how their pixels lie in images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...problem import ConvProblem
from ...shapes import ceil_div
from .hopper_view import Dense, together

__all__ = [
    "FORMS", "MOST_TOGETHER", "Form", "axes_of", "box_of", "configs_of", "constants_of_form", "corners_of",
    "epilogue_of", "laid", "launched", "programs_of", "reached", "shared_elements", "shares", "split_axis",
    "stages_of", "step_bytes", "strips_of", "tiles_of", "units_of",
]  # fmt: skip

_SHARED_BYTES = 232_448
"""Bytes of shared memory that a block may have on sm_90."""

_BARRIERS = 1024
"""Bytes for barriers, and for buffers to begin at multiples of what is swizzled together."""

_MOST_STAGES = 6
"""Slots beyond which no more latency hides. Assumed."""


MOST_TOGETHER = 8
"""Phases of one launch at most: a kernel has so many maps of the result, each of which it names."""


@dataclass(frozen=True, slots=True)
class Form:
    """A kernel and the constants that its registers depend on.

    Attributes
    ----------
    kernel
        ``tiles``, ``strips`` or ``pixels``: a module of ``kernels/tl/hopper``.
    consumers, warps
        Partitions that multiply, and the warps of each.
    pixels
        Pixels of a consumer in each CTA: a box, or of strips one line, of which it has `lines`.
    channels
        Channels of a tile, of both CTAs of a cluster.
    chunks
        Pieces in which a tile is stored.
    registers
        Of each consumer but the first, and of the producer.
    loop
        Instructions of a consumer between two waits for x, in the machine code; of strips with three taps above.
    epilogue
        Instructions of a consumer for a tile beside that loop, at most: those of the whole kernel over the consumers.
    lines, shared, instruction, limit, resident
        Output rows of a consumer; what a cluster shares; channels of one wgmma, if not all; a bound on registers, and
        the blocks of a multiprocessor that it lets in.
    epilogues
        What stands behind the sums without spilling: ``all``, ``relu`` (anything but other activations) or ``none``.
    phases
        Phases of one launch at most, which are chosen among without spilling.
    turned
        Whether it reads weights turned, as data gradients do, without spilling.
    above
        Taps above each other that strips have at most: so many were compiled, and none spills.
    moves
        Instructions that come to the loop where anything stands behind the sums: the compiler moves sums about then.
    sharing
        `registers` with which programs may have equal shares of all steps without spilling, if they may.
    turned_shares
        Whether they may where weights are read turned.
    """

    kernel: str
    consumers: int
    pixels: int
    channels: int
    chunks: int
    registers: tuple[int, int]
    loop: int
    epilogue: int
    warps: int = 4
    lines: int = 1
    shared: str = ""
    instruction: int | None = None
    limit: int | None = None
    resident: int = 1
    epilogues: str = "all"
    phases: int = MOST_TOGETHER
    turned: bool = True
    above: int = 11
    moves: int = 0
    sharing: tuple[int, int] | None = None
    turned_shares: bool = True

    @property
    def ctas(self) -> int:
        """CTAs that share a tile."""
        return 2 if self.shared else 1

    @property
    def channels_of_cta(self) -> int:
        """Channels that one CTA multiplies."""
        return self.channels // 2 if self.shared == "pixels" else self.channels


FORMS: dict[str, Form] = {
    "256x128": Form("tiles", 2, 128, 128, 2, (240, 24), 56, 700),
    "128x256": Form("tiles", 2, 64, 256, 4, (240, 24), 44, 728, phases=4),
    "192x256": Form("tiles", 3, 64, 256, 4, (160, 24), 56, 666, instruction=128, epilogues="none", turned=False),
    "128x128": Form("tiles", 2, 64, 128, 2, (240, 24), 44, 608),
    "256x64": Form("tiles", 2, 128, 64, 1, (240, 24), 56, 580),
    "128x64": Form("tiles", 1, 128, 64, 1, (240, 24), 57, 799, limit=128, resident=2),
    "256x32": Form("tiles", 2, 128, 32, 1, (240, 24), 56, 560),
    "2 x 128x256": Form("tiles", 2, 64, 256, 4, (240, 24), 46, 794, shared="weights", phases=4),
    "2 x 256x128": Form("tiles", 2, 128, 256, 1, (240, 24), 58, 758, shared="pixels", epilogues="relu", phases=1),
    "strips 4x64x128": Form(
        "strips", 2, 64, 128, 4, (224, 48), 161, 915, lines=2, epilogues="relu", moves=33, sharing=(216, 72)
    ),
    "strips 6x64x128": Form("strips", 2, 64, 128, 2, (232, 40), 237, 1035, lines=3, epilogues="none", above=3),
    "strips 8x64x64": Form("strips", 2, 64, 64, 2, (216, 56), 318, 1046, lines=4, epilogues="relu", sharing=(216, 72)),
    "strips 4x64x64": Form("strips", 2, 64, 64, 2, (224, 48), 161, 747, lines=2, moves=21, sharing=(216, 72)),
    "2 x strips 4x64x128": Form(
        "strips",
        2,
        64,
        128,
        4,
        (224, 56),
        174,
        906,
        lines=2,
        shared="weights",
        epilogues="relu",
        moves=32,
        sharing=(216, 72),
    ),
    "pixels 256x128": Form(
        "pixels", 2, 128, 128, 2, (232, 40), 56, 660, epilogues="relu", sharing=(232, 40), turned_shares=False
    ),
    "pixels 128x256": Form("pixels", 1, 128, 256, 4, (232, 40), 47, 873, warps=8, sharing=(232, 40)),
    "pixels 128x128": Form("pixels", 2, 64, 128, 2, (232, 40), 44, 572, sharing=(224, 48)),
    "pixels 256x64": Form("pixels", 2, 128, 64, 1, (232, 40), 56, 540, sharing=(232, 40)),
    "pixels 256x32": Form("pixels", 2, 128, 32, 1, (232, 40), 56, 540, sharing=(232, 40)),
    "2 x pixels 128x256": Form(
        "pixels", 1, 128, 256, 4, (232, 40), 49, 975, warps=8, shared="weights", sharing=(232, 40)
    ),
    "2 x pixels 256x128": Form("pixels", 2, 128, 256, 1, (232, 40), 58, 722, shared="pixels", epilogues="none"),
}
"""Forms by name: pixels x channels of a CTA; of strips rows x columns x channels."""


def strips_of(form: Form, above: int) -> int:
    """Return the strips of a set: one for each output row, and one for each tap above another."""
    return form.consumers * form.lines + above - 1


def step_bytes(form: Form, above: int, block_c: int, item: int) -> tuple[int, int, int]:
    """Return the bytes of a CTA's slots of x and of weights, and of what is stored at once; see :func:`stages_of`."""
    x = form.consumers * form.pixels * block_c * item
    if form.kernel == "strips":
        x = strips_of(form, above) * form.pixels * block_c * item
    staging = form.consumers * form.pixels * form.channels_of_cta // form.chunks * item
    return x, form.channels_of_cta * block_c * item, staging


def stages_of(form: Form, above: int, block_c: int, item: int) -> tuple[int, int]:
    """Return how many slots of x and of weights fit in shared memory; of strips there are 2 sets of x.

    Parameters
    ----------
    form
        The form.
    above
        Taps above each other.
    block_c, item
        Channels of a step, and bytes of an element.
    """
    x, w, staging = step_bytes(form, above, block_c, item)
    room = (_SHARED_BYTES - 1024 * (form.resident - 1)) // form.resident - _BARRIERS - staging
    if form.kernel == "strips":
        return 2, min((room - 2 * x) // w, _MOST_STAGES)
    stages = min(room // (x + w), _MOST_STAGES)
    return stages, stages


def cluster_tile(form: Form, config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return images, rows and columns of a consumer's box, or strip, of both CTAs."""
    tile = (config["TILE_N"], config["TILE_P"], config["TILE_Q"])
    if form.shared != "weights":
        return tile
    axis = split_axis(tile)
    n, p, q = (2 * size if at == axis else size for at, size in enumerate(tile))
    return n, p, q


def split_axis(tile: tuple[int, ...]) -> int:
    """Return the axis that two CTAs split: the outermost along which there is more than one pixel."""
    return next(axis for axis, size in enumerate(tile) if size > 1)


def _arrangement(form: Form, dense: Dense) -> tuple[int, int]:
    """Return rows and columns of consumers: one below the other, but where there is one row."""
    return (1, form.consumers) if dense.walked[2] == 1 else (form.consumers, 1)


def tiles_of(form: Form, dense: Dense, config: Mapping[str, Any]) -> int:
    """Return how many tiles there are; a cluster's counts once."""
    n, o, p, q = dense.walked
    of_channels = ceil_div(dense.channels, form.channels)
    if form.kernel == "pixels":
        return (
            ceil_div(dense.pixels, form.pixels * form.consumers * (2 if form.shared == "weights" else 1)) * of_channels
        )
    images, height, width = cluster_tile(form, config)
    if form.kernel == "strips":  # rows as far apart as taps are, and then those between them
        apart = abs(dense.step[1])
        of_rows = ceil_div(p, form.consumers * form.lines * apart) * apart
    else:
        rows, columns = _arrangement(form, dense)
        of_rows, width = ceil_div(p, height * rows), width * columns
    return ceil_div(n, images) * o * of_rows * ceil_div(q, width) * of_channels


def boxes_of(form: Form, dense: Dense) -> dict[str, int]:
    """Return the shape of a box in images, rows and columns of which there are the fewest; the widest of those."""
    n, _, p, _ = dense.walked
    sides = [1 << bit for bit in range(form.pixels.bit_length())]
    found = []
    for width in sides:
        for height in sides if form.kernel == "tiles" else (1,):
            images, rest = divmod(form.pixels, width * height)
            if rest or not images or (n == 1 and images > 1) or (p == 1 and height > 1):
                continue
            box = {"TILE_N": images, "TILE_P": height, "TILE_Q": width}
            found.append((tiles_of(form, dense, box), -width, -height, box))
    return min(found, key=lambda entry: entry[:3])[3] if found else {}


_CORNERS = {2: (-128, 127, 255), 3: (-16, 15, 31)}
"""Least and largest corner, and largest offset, of the im2col mode by spatial axes."""

_MOST_STRIDE = 8
"""Positions from one pixel to the next at most, in the im2col mode."""


def axes_of(dense: Dense) -> int:
    """Return the spatial axes of the im2col mode: no depth where its one position meets its one tap."""
    deep = dense.size[0] > 1 or dense.taps[0] > 1 or dense.output[0] > 1 or dense.first[0] != 0
    return 3 if deep else 2


def corners_of(dense: Dense) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return lower and upper corners of the positions that boxes of the im2col mode begin at."""
    axes = axes_of(dense)
    low = dense.upwards((0, 1, 2)).first
    high = tuple(
        (out - 1) * by + 1 - size + first
        for out, by, size, first in zip(dense.output, dense.stride, dense.size, low, strict=True)
    )
    return low[-axes:], high[-axes:]


def reached(dense: Dense) -> bool:
    """Tell whether the im2col mode reaches from the first tap to the last, and to the last position."""
    least, most, furthest = _CORNERS[axes_of(dense)]
    corners = [at for corner in corners_of(dense) for at in corner]
    offsets = [(tap - 1) * abs(step) for tap, step in zip(dense.taps, dense.step, strict=True)]
    return max(dense.stride) <= _MOST_STRIDE and all(least <= at <= most for at in corners) and max(offsets) <= furthest


def takes(form: Form, dense: Dense) -> bool:
    """Tell whether a form computes a convolution at all."""
    if form.kernel == "pixels":
        return not dense.flat and dense.spread == (1, 1, 1) and reached(dense)
    if dense.stride != (1, 1, 1):
        return False
    if form.kernel == "strips":
        return 1 < dense.taps[1] <= form.above and dense.walked[2] > 1 and dense.step[1] != 0
    return True


def _in_one(form: Form, phases: Sequence[Dense]) -> bool:
    """Tell whether one launch computes phases of a gradient; parts of images are none."""
    return form.kernel == "tiles" and 1 < len(phases) <= form.phases and phases[0].spread != (1, 1, 1)


def launched(form: Form, phases: Sequence[Dense], block_c: int) -> list[list[Dense]]:
    """Return the phases of each launch: all in one where a kernel does that, those of most steps first."""
    if _in_one(form, phases):
        return [sorted(phases, key=lambda phase: -phase.steps(block_c))]
    return [[phase] for phase in phases]


def block_channels(dense: Dense) -> list[int]:
    """Return the channels of a step: as many as are swizzled together, or half where the last block is half empty."""
    whole = 128 // dense.item
    half = whole // 2
    if 0 < dense.reduced % whole <= half:
        return [whole, half]
    return [whole]


def _blocks(form: Form, above: int, dense: Dense) -> list[int]:
    """Return the channels of a step of which two stages fit; half of them for strips, if no more do."""
    whole = block_channels(dense)
    halves = [whole[0] // 2] if form.kernel == "strips" else []
    fit = [[size for size in sizes if min(stages_of(form, above, size, dense.item)) > 1] for sizes in (whole, halves)]
    return fit[0] or fit[1]


def _views(form: Form, phases: Sequence[Dense]) -> Iterator[tuple[Sequence[Dense], dict[str, int]]]:
    """Yield a convolution as a form may take it, and what a config says of that: as it is, or a signal in segments."""
    if all(takes(form, phase) for phase in phases):
        yield phases, {}
    if form.kernel == "strips" and len(phases) == 1:
        folds = [phases[0].folded(segments) for segments in phases[0].foldable]
        folds = [fold for fold in folds if takes(form, fold)]
        counted = [(tiles_of(form, fold, boxes_of(form, fold)), fold.segments, fold) for fold in folds]
        if counted:
            _, segments, fold = min(counted, key=lambda entry: entry[:2])
            yield [fold], {"segments": segments}


def laid(phases: Sequence[Dense], config: Mapping[str, Any]) -> Sequence[Dense]:
    """Return phases as a config has them: a signal in segments, or as they are."""
    return [phases[0].folded(config["segments"])] if "segments" in config else phases


def epilogue_of(problem: ConvProblem) -> str:
    """Return the least kind of epilogue that a form must stand: ``none``, ``relu`` or ``all``."""
    if problem.activation not in (None, "relu", "relu6"):
        return "all"
    extras = problem.bias or problem.scale or problem.shift or problem.residual
    return "relu" if extras or problem.activation else "none"


def configs_of(problem: ConvProblem, phases: Sequence[Dense]) -> Iterator[dict[str, Any]]:
    """Yield the configs of a convolution in phases, or in parts, the largest first: forms that take all of them."""
    dense = phases[0]
    stand = {"none": ("none", "relu", "all"), "relu": ("relu", "all"), "all": ("all",)}[epilogue_of(problem)]
    for name, form in FORMS.items():
        if form.epilogues not in stand or form.turned < dense.turned:
            continue
        wasted = form.channels_of_cta * (form.ctas if form.shared == "pixels" else 1) >= 2 * max(dense.channels, 32)
        if wasted or (form.shared and dense.item == 4):
            continue
        for views, segments in _views(form, phases):
            above = max(view.taps[1] for view in views)
            for block_c in _blocks(form, above, dense):
                largest = together(launched(form, views, block_c)[0])
                box = boxes_of(form, largest) if form.kernel != "pixels" else {}
                if form.kernel == "pixels" or box:
                    yield {"form": name, "BLOCK_C": block_c, **box, **segments}


def programs_of(form: Form, phases: Sequence[Dense], config: Mapping[str, Any], multiprocessors: int) -> int:
    """Return the programs of a launch, which take tiles in turn; one of a cluster is two CTAs."""
    tiles = len(phases) * tiles_of(form, together(phases), config)
    if config.get("stream"):
        tiles *= units_of(form, phases[0], config["BLOCK_C"])
    return max(min(tiles, multiprocessors * form.resident // form.ctas), 1)


def units_of(form: Form, dense: Dense, block_c: int) -> int:
    """Return the steps of a tile, of which programs have equal shares: products, or of strips sets of them."""
    steps = dense.steps(block_c)
    return steps // dense.taps[1] if form.kernel == "strips" else steps


_MOST_UNITS = 2**31
"""Steps of all tiles: kernels count them in 32 bits."""

_MOST_ROUNDS = 8
"""Rounds of tiles over all programs beyond which an unfinished one is no loss to speak of."""


def shares(
    form: Form, problem: ConvProblem, phases: Sequence[Dense], config: Mapping[str, Any], multiprocessors: int
) -> bool:
    """Tell whether programs may have equal shares of all steps, and that is worth it.

    That is: one launch of few rounds, the last of which is not full, and no more behind the sums than was compiled.
    """
    more = problem.scale or problem.shift or problem.residual or problem.rounding == "torch"
    if form.sharing is None or len(phases) > 1 or more or problem.activation not in (None, "relu", "relu6"):
        return False
    if phases[0].turned and not form.turned_shares:
        return False
    tiles, room = tiles_of(form, phases[0], config), max(multiprocessors * form.resident // form.ctas, 1)
    units = tiles * units_of(form, phases[0], config["BLOCK_C"])
    return 2 * room <= units < _MOST_UNITS and tiles % room > 0 and tiles < _MOST_ROUNDS * room


def shared_elements(form: Form, programs: int) -> dict[str, tuple[str, int]]:
    """Return what programs with equal shares hand over: sums of a tile each, and signals."""
    pixels = form.pixels * form.lines * (2 if form.shared == "weights" else 1)
    sums = programs * form.consumers * pixels * form.channels
    return {"parts": ("float32", sums), "flags": ("int64", programs * form.consumers * form.ctas)}


def constants_of_form(
    form: Form, problem: ConvProblem, phases: Sequence[Dense], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the constants of the kernel that launches some phases, by name."""
    dense = together(phases)
    sets, stages = stages_of(form, dense.taps[1], config["BLOCK_C"], dense.item)
    chunks = form.chunks if dense.item == 2 or form.shared == "pixels" else min(2 * form.chunks, 4)
    found = {
        "BLOCK_K": form.channels, "BLOCK_C": config["BLOCK_C"], "GROUP": 8, "STAGES": stages, "CHUNKS": chunks,
        "TRANSPOSED": dense.turned, "ACTIVATION": problem.activation, "ROUND_EACH": problem.rounding == "torch",
        "INSTRUCTION_N": form.instruction or form.channels_of_cta, "INSTRUCTION_K": 32 // dense.item,
        "CONSUMER_REGISTERS": form.registers[0], "PRODUCER_REGISTERS": form.registers[1], "SHARED": form.shared,
    }  # fmt: skip
    if form.kernel != "tiles":
        found["STREAM"] = bool(config.get("stream"))
    if config.get("stream"):
        found |= zip(("CONSUMER_REGISTERS", "PRODUCER_REGISTERS"), form.sharing or form.registers, strict=True)
    if form.kernel == "pixels":
        pixels = form.pixels * (2 if form.shared == "weights" else 1)
        return found | {"BLOCK_M": pixels, "CONSUMERS": form.consumers, "AXES": axes_of(dense), "WARPS": form.warps}
    found |= zip(("TILE_N", "TILE_P", "TILE_Q"), cluster_tile(form, config), strict=True)
    if form.kernel == "strips":
        lines = form.consumers * form.lines
        of_strips = {"TILE_P": lines, "CONSUMERS": form.consumers, "SETS": sets, "FOLDED": dense.segments > 0}
        return found | of_strips | {"R": dense.taps[1], "DILATION": abs(dense.step[1])}
    rows, columns = _arrangement(form, dense)
    found |= {"ROWS": rows, "COLUMNS": columns, "WARPS": form.warps}
    return found | ({"PHASES": len(phases)} if len(phases) > 1 else {})


def box_of(form: Form, constants: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the box of pixels that is copied at once: images, planes, rows, columns; of runs their pixels."""
    if form.kernel == "pixels":
        return (constants["BLOCK_M"],)
    rows = 1 if form.kernel == "strips" else constants["TILE_P"]
    return (constants["TILE_N"], 1, rows, constants["TILE_Q"])
