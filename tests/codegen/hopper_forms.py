"""The Hopper kernels' forms: the tiles, stages and registers that a plan may take, as sources for the compiler.

Sizes are those of a cluster where there is one. ``budget`` is the length of the loop over the steps of a consumer, in
instructions, that a search on compiled code found for the form (Triton 3.9). ``registers`` are those of consumers and
producer, ``launch_registers`` what the launch asks for, which ``limit`` bounds so that two blocks fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from gpuconv.kernels.tl.hopper import pixels, strips, tiles, wgrad

__all__ = ["FORMS", "SHARED_MEMORY", "Form", "compiled"]

SHARED_MEMORY = 232_448
"""Bytes of shared memory that one block may have on sm_90."""

BITS = {"bf16": 16, "fp16": 16, "fp32": 32}
NUMBERS = {
    "tiles": "n c k o p q t r s first_d first_h first_w step_d step_h step_w programs",
    "strips": "n c k o p q t s first_d first_h first_w step_d step_w programs",
    "pixels": "n c k o p q t r s stride_d stride_h stride_w first_d first_h first_w step_d step_h step_w programs",
    "wgrad": "n c k o p q r s splits first_d first_h first_w step_d step_h step_w",
}
"""Integer arguments, all of 32 bits."""


@dataclass(frozen=True)
class Form:
    """A kernel of ``kernels/tl/hopper`` and its constants. ``tile`` is (TILE_N, TILE_P, TILE_Q), or (1, 1, BLOCK_M)."""

    kernel: str
    budget: int
    tile: tuple[int, int, int]
    rows: int = 2
    columns: int = 1
    block_k: int = 128
    block_c: int = 64
    stages: int = 4
    sets: int = 2
    chunks: int = 2
    taps: int = 3
    dilation: int = 1
    axes: int = 2
    dtype: str = "bf16"
    warps: int = 4
    registers: tuple[int, int] = (240, 24)
    launch_registers: int = 168
    limit: int | None = None
    columns_at_once: int | None = None
    shared: str = ""
    transposed: bool = False
    vectors: bool = False
    residual: bool = False
    activation: str | None = None
    round_each: bool = False

    @property
    def bits(self) -> int:
        return BITS[self.dtype]


def _layout(form: Form, box: list[int], split: list[int] | None, halves: int = 1) -> gl.NVMMASharedLayout:
    """Return the layout of a box, swizzled as wide as its rows are, split over a cluster along one axis or none."""
    return gl.NVMMASharedLayout(
        swizzle_byte_width=min(128, box[-1] * form.bits // 8 // halves),
        element_bitwidth=form.bits,
        rank=len(box),
        cga_layout=[] if split is None else [split],
    )


def _map(form: Form, box: list[int], split: list[int] | None, halves: int = 1, im2col: int = 0) -> str:
    """Return the type of a tensor map in a signature."""
    layout = _layout(form, box, split, halves)
    if im2col:
        return f"tensordesc_im2col<{form.dtype}[{','.join(map(str, box))}],input_rank={im2col},{layout!r}>"
    return f"tensordesc<{form.dtype}[{','.join(map(str, box))}],{layout!r}>"


def _along(box: list[int], axis: int) -> list[int]:
    return [int(at == axis) for at in range(len(box))]


def _dense(form: Form, box_x: list[int], box_y: list[int], split: int) -> tuple[dict, dict]:
    """Return signature and constants that three kernels share; a cluster splits pixels along axis `split`."""
    box_w = [1, form.block_c, form.block_k] if form.transposed else [1, form.block_k, form.block_c]
    splits: dict[str, tuple] = {
        "": (None, None, None, ()),
        "weights": (_along(box_x, split), [0, 0, 0], _along(box_y, split), ((1, 0),)),
        "pixels": ([0] * len(box_x), _along(box_w, 2 if form.transposed else 1), _along(box_y, 4), ((0, 1),)),
    }
    split_x, split_w, split_y, cluster = splits[form.shared]
    halves = 2 if form.shared == "pixels" else 1
    y_map = _map(form, box_y, split_y, halves)
    signature = {"x_map": _map(form, box_x, split_x), "w_map": _map(form, box_w, split_w), "y_map": y_map}
    constants = {
        "BLOCK_K": form.block_k,
        "BLOCK_C": form.block_c,
        "GROUP": 8,
        "STAGES": form.stages,
        "CHUNKS": form.chunks,
        "TRANSPOSED": form.transposed,
        "ACTIVATION": form.activation,
        "ROUND_EACH": form.round_each,
        "INSTRUCTION_N": form.columns_at_once or form.block_k // halves,
        "INSTRUCTION_K": 256 // form.bits,
        "CONSUMER_REGISTERS": form.registers[0],
        "PRODUCER_REGISTERS": form.registers[1],
        "CLUSTER": cluster,
    }
    for name in ("bias", "scale", "shift"):
        if form.vectors:
            signature |= {f"{name}_ptr": f"*{form.dtype}", f"{name}_stride": "i32"}
        else:
            constants |= {f"{name}_ptr": None, f"{name}_stride": 1}
    if form.residual:
        signature["residual_map"] = y_map
    else:
        constants["residual_map"] = None
    return signature, constants


def _tiles(form: Form) -> tuple[object, dict, dict]:
    n, p, q = form.tile
    split = 0 if n > 1 else 2
    signature, constants = _dense(form, [n, 1, p, q, form.block_c], [n, 1, p, q, form.block_k // form.chunks], split)
    names = {"TILE_N": n, "TILE_P": p, "TILE_Q": q, "ROWS": form.rows, "COLUMNS": form.columns, "WARPS": form.warps}
    return tiles._conv_tiles_kernel, signature, constants | names


def _strips(form: Form) -> tuple[object, dict, dict]:
    n, p, q = form.tile
    split = 0 if n > 1 else 3
    signature, constants = _dense(form, [n, 1, 1, q, form.block_c], [n, 1, 1, q, form.block_k // form.chunks], split)
    names = {"TILE_N": n, "TILE_P": p, "TILE_Q": q, "CONSUMERS": form.rows, "SETS": form.sets}
    return strips._conv_strips_kernel, signature, constants | names | {"R": form.taps, "DILATION": form.dilation}


def _pixels(form: Form) -> tuple[object, dict, dict]:
    own = form.shared == "weights"
    block_m = form.tile[2]
    box = [block_m // 2 if own else block_m, form.block_c]
    box_y = [1, 1, 1, block_m, form.block_k // form.chunks]
    signature, constants = _dense(form, box, box_y, 0)
    if own:
        signature["y_map"] = _map(form, box_y, _along(box_y, 3))
    signature["x_map"] = _map(form, box, [0, 0] if form.shared else None, im2col=form.axes + 2)
    return (
        pixels._conv_pixels_kernel,
        signature,
        constants
        | {
            "BLOCK_M": block_m,
            "CONSUMERS": form.rows,
            "AXES": form.axes,
            "WARPS": form.warps,
            "OPERAND": _layout(form, [block_m, form.block_c], [1, 0]) if own else None,
        },
    )


def _wgrad(form: Form) -> tuple[object, dict, dict]:
    n, p, q = form.tile
    signature = {
        "dy_map": _map(form, [n, 1, p, q, form.block_k], None),
        "x_map": _map(form, [n, 1, p, q, form.block_c], None),
        "dw_ptr": "*fp32",
    }
    return (
        wgrad._conv_wgrad_tiles_kernel,
        signature,
        {
            "TILE_N": n,
            "TILE_P": p,
            "TILE_Q": q,
            "BLOCK_K": form.block_k,
            "BLOCK_C": form.block_c,
            "STAGES": form.stages,
            "INSTRUCTION_N": form.block_c,
            "WARPS": form.warps,
            "PRODUCER_REGISTERS": form.registers[1],
        },
    )


_SOURCES: dict[str, Callable[[Form], tuple]] = {"tiles": _tiles, "strips": _strips, "pixels": _pixels, "wgrad": _wgrad}


def compiled(form: Form):
    """Compile a form for sm_90a."""
    kernel, signature, constants = _SOURCES[form.kernel](form)
    signature = signature | dict.fromkeys(NUMBERS[form.kernel].split(), "i32")
    whole = {name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names}
    source = GluonASTSource(fn=kernel, signature=whole, constexprs=constants, attrs={})
    options = {"num_warps": form.warps, "num_ctas": 2 if form.shared else 1, "maxnreg": form.limit}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


WIDE = Form("tiles", 44, (1, 4, 16), block_k=256, chunks=4)
TALL = Form("tiles", 56, (1, 8, 16))
SIX = Form("strips", 237, (1, 6, 64), registers=(232, 40))
RUN = Form("pixels", 56, (1, 1, 128), registers=(232, 40))

FORMS: dict[str, Form] = {
    "tiles 256x128": TALL,
    "tiles 128x256": WIDE,
    "tiles 256x128, fp16": replace(TALL, dtype="fp16"),
    "tiles 256x128 as a data gradient": replace(TALL, transposed=True),
    "tiles 256x128 along a row": replace(TALL, tile=(1, 1, 128), rows=1, columns=2),
    "tiles 256x128, whole epilogue": replace(TALL, vectors=True, residual=True, activation="gelu"),
    "tiles 256x128, rounding each": replace(TALL, vectors=True, round_each=True, activation="relu"),
    "tiles 192x256": replace(
        WIDE, budget=57, rows=3, stages=3, registers=(160, 24), launch_registers=128, columns_at_once=128
    ),
    "tiles 128x64, two blocks": Form(
        "tiles", 56, (1, 8, 16), rows=1, block_k=64, stages=3, chunks=1, launch_registers=128, limit=128
    ),
    "tiles 256x128 of 32 channels": replace(TALL, budget=45, block_c=32, stages=6),
    "tiles 256x128, tf32": replace(TALL, dtype="fp32", block_c=32, stages=3, chunks=4),
    "2 x tiles 128x256, weights shared": replace(WIDE, budget=46, tile=(1, 8, 16), shared="weights"),
    "2 x tiles 256x128, weights shared": replace(TALL, budget=58, tile=(1, 16, 16), shared="weights"),
    "2 x tiles 256x128, pixels shared": replace(TALL, budget=58, block_k=256, stages=3, chunks=1, shared="pixels"),
    "strips 4x64x128": replace(SIX, budget=161, tile=(1, 4, 64), stages=5, chunks=1),
    "strips 6x64x128": SIX,
    "strips 6x64x128 as a data gradient": replace(SIX, transposed=True),
    "strips 6x64x128, three consumers": replace(SIX, budget=161, rows=3, registers=(160, 32), launch_registers=128),
    "strips 8x64x64": replace(SIX, budget=318, tile=(1, 8, 64), block_k=64, registers=(224, 48)),
    "2 x strips 4x64x128": replace(
        SIX, budget=173, tile=(1, 4, 128), stages=5, chunks=1, registers=(224, 56), shared="weights"
    ),
    "pixels 256x128": RUN,
    "pixels 256x128 of volumes": replace(RUN, axes=3),
    "pixels 128x256": replace(RUN, budget=47, rows=1, block_k=256, warps=8, chunks=4),
    "2 x pixels 256x128, pixels shared": replace(RUN, budget=58, block_k=256, stages=3, chunks=1, shared="pixels"),
    "2 x pixels 128x256, weights shared": replace(
        RUN, budget=49, tile=(1, 1, 256), rows=1, block_k=256, warps=8, chunks=4, shared="weights"
    ),
    "weight gradient 128x256": Form("wgrad", 47, (1, 8, 8), block_c=256, warps=8),
    "weight gradient 256x128": Form("wgrad", 59, (1, 8, 8), block_k=256, block_c=128, warps=8),
}
