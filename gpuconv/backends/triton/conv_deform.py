"""Deformable convolution on the Triton backend: what its solvers take, tiles, arguments and launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ...arrays import CHANNELS_LAST, CONTIGUOUS
from ...config import workspace_limit
from ...costs import Work
from ...packs import KernelReference
from ...problem import Call, ConvProblem, DeformProblem, Problem
from ...shapes import ceil_div
from ..axes import five, reach
from ..base import Estimate, Plan, Solver
from .common import Strides, accumulator_type, as_tensor, conv_arguments, power_of_two, recorded_at_first, stream_of
from .common import index64 as conv_index64
from .conv_grad import wgrad_sum_arguments
from .deform_costs import dgrad_work, fprop_work, wgrad_work
from .launch import launch_kernel
from .tuned import Tunable

__all__ = ["SOLVERS", "DeformDgrad", "DeformFprop", "DeformWgrad", "deform_arguments"]

_PROGRAMS = 132
"""Multiprocessors of an H100 or H200: a reduction is split where tiles would leave at least half of them idle."""

_LEAST_STEPS = 16
"""Reduction steps of a split at least: each forms products of what takes four loads an element to sample."""

_MOST_SPLITS = 64

_GATHER = {"BLOCK_M": 16, "num_warps": 4, "num_stages": 2, "maxnreg": 255}
_CELLS = {"BLOCK": 256, "num_warps": 4, "num_stages": 2}
_SUM = {"num_warps": 4, "num_stages": 3}

_BYTES_PER_SAMPLE = 40
"""Bytes of a key, a sorted key and a place, in 64 bits each, and what sorting takes beside them."""

_OFFSETS = ("n", "c", "o", "p", "q")


def _accumulator_bytes(problem: DeformProblem) -> int:
    return 8 if problem.conv.dtype == "float64" else 4


def _tile(conv: ConvProblem, sizes: tuple[int, int, int]) -> dict[str, int]:
    """Return a tile of rows, columns and depth, at least 16 a side as ``tl.dot`` needs.

    A sampled element takes an address for each of its corners where channels do not lie side by side, so few of them
    fit in registers, of which a thread gets as many as there are.
    """
    most = {"float64": (32, 32, 16), "float32": (64, 64, 16)}.get(conv.dtype, (64, 128, 32))
    m, n, k = (min(side, max(16, power_of_two(size))) for side, size in zip(most, sizes, strict=True))
    if conv.x_format != CHANNELS_LAST:
        k = min(k, 16)
    far = conv.ndim == 3 and conv.x_format != CHANNELS_LAST
    warps = 8 if m * n >= 64 * 64 or (far and m * n >= 32 * 32) or conv.dtype == "float64" else 4
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": 2, "maxnreg": 255}


def _gradient_tile(conv: ConvProblem, sizes: tuple[int, int, int]) -> dict[str, int]:
    """Return a tile whose results are sampled themselves, of which a thread holds few; see :func:`_tile`."""
    tile = _tile(conv, sizes)
    near, wide, volume = conv.x_format == CHANNELS_LAST, conv.dtype == "float64", conv.ndim == 3
    if near and not wide:
        most = (64, 32 if volume else 64)
    else:
        most = (64 if not wide and not volume else 32 if near and not volume else 16, 16)
    m, n = (min(tile[f"BLOCK_{side}"], size) for side, size in zip("MN", most, strict=True))
    warps = 8 if m == 64 or wide else 4
    return tile | {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps}


def _cells(conv: ConvProblem) -> int:
    """Return the cells between the elements of an image, the outermost of which reach out of it."""
    return prod(size + 1 for size in conv.input_size)


def _five_strides(name: str, strides: Sequence[int] | None) -> dict[str, int]:
    found = (0,) * 5 if strides is None else five(strides)
    return {f"{name}_stride_{axis}": step for axis, step in zip(_OFFSETS, found, strict=True)}


def _index64(problem: DeformProblem, strides: Strides, rows: int) -> bool:
    """Tell whether an offset of any tensor, or a number below `rows`, may not fit in a signed 32-bit integer."""
    shapes = problem.shapes
    most = max([rows, *(reach(shapes[name], strides[name]) for name in ("offset", "mask") if name in strides)])
    return conv_index64(problem.conv, {name: strides[name] for name in "xwy" if name in strides}, most)


def deform_arguments(problem: DeformProblem, strides: Strides, config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the arguments that the kernels of deformable convolution share, by name.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x``, ``w``, ``y``, ``offset``, where there are any of ``mask`` and ``bias``.
    config
        The tile; ``INDEX64`` in it forces the 64-bit variant.
    rows
        A number that rows and places in tensors of the workspace stay below.
    """
    conv = problem.conv
    found = conv_arguments(conv, strides)
    unused = ("scale_stride", "shift_stride", "ACTIVATION")
    found = {name: value for name, value in found.items() if name not in unused and not name.startswith("residual")}
    return (
        found
        | _five_strides("offset", strides["offset"])
        | _five_strides("mask", strides.get("mask"))
        | {
            "c_per_offset_group": conv.c // problem.offset_groups,
            "c_per_segment": problem.segment,
            "offset_groups": problem.offset_groups,
            "NDIM": conv.ndim,
            "ACC_DTYPE": accumulator_type(conv),
            "INDEX64": bool(config.get("INDEX64")) or _index64(problem, strides, rows),
            **{name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K") if name in config},
        }
    )


def _without(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return arguments without those that begin with one of `names`."""
    return {name: value for name, value in arguments.items() if not name.startswith(names)}


class _Deform(Tunable):
    """What the three passes share. There is one tile to choose from: nothing is tuned."""

    kind = ""

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, DeformProblem) and problem.conv.kind == self.kind

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, DeformProblem):
            return "samples between elements, as deformable convolution does, which is another operation"
        if problem.conv.kind != self.kind:
            return f"solves {self.kind}, not {problem.conv.kind}"
        return None

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, DeformProblem)
        return Plan(self, problem, self.workspace(problem, config), dict(config))

    def workspace(self, problem: DeformProblem, config: Mapping[str, Any]) -> int:
        """Return the bytes that a launch allocates beside its results."""
        return 0

    def plan(self, problem: Problem) -> Plan:
        return self.bind(problem, self.default(problem))

    def estimated(self, problem: Problem) -> Estimate:
        return Estimate(float(self.modelled(problem, [self.default(problem)])[0]), "model")

    @recorded_at_first
    def run(self, plan: Plan, call: Call) -> Any:
        import torch

        problem = plan.problem
        assert isinstance(problem, DeformProblem)
        with stream_of(call.kind, problem):
            tensors = {name: as_tensor(torch, array) for name, array in call.arrays.items()}
            strides = {name: tensor.stride() for name, tensor in tensors.items() if tensor is not None}
            return self.launch(problem, call, tensors, strides, plan.config)

    def launch(
        self, problem: DeformProblem, call: Call, tensors: dict[str, Any], strides: dict[str, Any],
        config: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """Allocate what is wanted, launch on torch tensors by name, and return the results."""
        raise NotImplementedError


class DeformFprop(_Deform):
    """Forward: an implicit GEMM that interpolates what it loads; nothing is stored in between."""

    id = "triton.conv.deform.fprop"
    kind = "fprop"

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, DeformProblem)
        conv = problem.conv
        yield _tile(conv, (conv.n * prod(conv.output_size), conv.k // conv.groups, problem.segment)) | {"GROUP_M": 8}

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, DeformProblem)
        return fprop_work(problem, configs, problem.segment)

    def launch(
        self, problem: DeformProblem, call: Call, tensors: dict[str, Any], strides: dict[str, Any],
        config: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        import torch

        conv = problem.conv
        result = call.kind.empty(conv.result_shape, conv.dtype, conv.device, conv.result_format)
        if 0 in conv.result_shape:
            return result
        tensors["y"] = as_tensor(torch, result)
        strides["y"] = tensors["y"].stride()
        rows = conv.n * prod(conv.output_size)
        arguments = _without(deform_arguments(problem, strides, config, rows + config["BLOCK_M"]), "offset_groups")
        groups = arguments.pop("groups")
        tiles = ceil_div(rows, config["BLOCK_M"]), ceil_div(conv.k // conv.groups, config["BLOCK_N"])
        arguments |= {"tiles_m": tiles[0], "tiles_n": tiles[1], "GROUP_M": config["GROUP_M"]}
        pointers = {name: tensors.get(name) for name in ("x", "offset", "mask", "w", "y", "bias")}
        kernel = KernelReference("conv.deform", "_conv_deform_fprop_kernel")
        launch_kernel(problem, kernel, (groups * prod(tiles),), pointers, arguments, config)
        return result


class DeformDgrad(_Deform):
    """Gradients of input, offset and mask, whichever are wanted; the input's by sorted samples, in pieces."""

    id = "triton.conv.deform.dgrad"
    kind = "dgrad"
    always_answers = True

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, DeformProblem)
        conv = problem.conv
        sizes = conv.n * prod(conv.output_size), problem.segment, conv.k // conv.groups
        tile = _gradient_tile(conv, sizes)
        yield tile | self._pieces(problem)

    @staticmethod
    def _image_bytes(problem: DeformProblem, channels: int) -> int:
        """Return the workspace of one image for the gradient of so many channels of the input."""
        conv = problem.conv
        samples = problem.taps * prod(conv.output_size)
        lists = _cells(conv)
        of_lists = problem.offset_groups * (samples * _BYTES_PER_SAMPLE + 8 * lists)
        return samples * channels * _accumulator_bytes(problem) + of_lists

    def _pieces(self, problem: DeformProblem) -> dict[str, int]:
        """Return how many images, segments and channels of a segment are in work at a time.

        One of each at least, whatever the limit: the lists of one image's samples may take more.
        """
        conv, channels = problem.conv, problem.segment
        images, segments = max(conv.n, 1), max(conv.c // channels, 1)
        if "x" in problem.grads:
            room = workspace_limit()
            while segments > 1 and self._image_bytes(problem, segments * channels) > room:
                segments = ceil_div(segments, 2)
            while channels > 1 and self._image_bytes(problem, channels) > room:
                channels = max(part for part in range(1, channels) if problem.segment % part == 0)
            images = min(max(room // self._image_bytes(problem, segments * channels), 1), images)
        return {"images": images, "segments": segments, "channels": channels}

    def workspace(self, problem: DeformProblem, config: Mapping[str, Any]) -> int:
        if "x" not in problem.grads:
            return 0
        return int(config["images"]) * self._image_bytes(problem, config["segments"] * config["channels"])

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, DeformProblem)
        return dgrad_work(problem, configs, problem.segment)

    def launch(
        self, problem: DeformProblem, call: Call, tensors: dict[str, Any], strides: dict[str, Any],
        config: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        import torch

        conv = problem.conv
        formats = {"x": conv.x_format}
        results = {
            name: call.kind.empty(problem.shapes[name], conv.dtype, conv.device, formats.get(name, CONTIGUOUS))
            for name in problem.grads
        }
        found = {name: as_tensor(torch, result) for name, result in results.items()}
        if ("offset" in found or "mask" in found) and 0 not in problem.mask_shape:
            self._of_offsets(problem, tensors, strides, found, config)
        if "x" in found and 0 not in conv.x_shape:
            self._of_input(problem, tensors, strides, found["x"], config)
        return tuple(results[name] for name in problem.grads)

    @staticmethod
    def _of_offsets(
        problem: DeformProblem, tensors: Mapping[str, Any], strides: Strides, found: Mapping[str, Any],
        config: Mapping[str, Any],
    ) -> None:  # fmt: skip
        conv = problem.conv
        rows = conv.n * prod(conv.output_size)
        most = max(rows + config["BLOCK_M"], prod(problem.offset_shape))
        arguments = _without(deform_arguments(problem, strides, config, most), "bias_stride")
        del arguments["groups"]
        pointers = {name: tensors.get(name) for name in ("y", "x", "offset", "mask", "w")}
        pointers |= {f"{name}_grad": found.get(name) for name in ("offset", "mask")}
        grid = (ceil_div(rows, config["BLOCK_M"]) * problem.offset_groups * prod(conv.kernel),)
        kernel = KernelReference("conv.deform_grad", "_conv_deform_offset_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, config)

    def _of_input(
        self, problem: DeformProblem, tensors: Mapping[str, Any], strides: Mapping[str, Any], result: Any,
        config: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Go over images and segments in pieces: column gradients, lists of samples, and their sums."""
        import torch

        conv = problem.conv
        samples = problem.offset_groups * prod(conv.kernel) * prod(conv.output_size)
        all_segments = conv.c // config["channels"]
        sums = getattr(torch, "float64" if conv.dtype == "float64" else "float32")
        per_image = prod(conv.kernel) * prod(conv.output_size) * config["segments"] * config["channels"]
        columns = torch.empty(config["images"] * per_image, dtype=sums, device=result.device)
        for first in range(0, conv.n, config["images"]):
            images = min(config["images"], conv.n - first)
            some = {name: t if t is None or name == "w" else t[first : first + images] for name, t in tensors.items()}
            order, starts = self._lists(problem, some["offset"], strides, images * samples, images, config)
            for segments_from in range(0, all_segments, config["segments"]):
                segments = min(config["segments"], all_segments - segments_from)
                piece = {"n": images, "segments": segments, "first_segment": segments_from}
                piece["c_per_segment"] = config["channels"]
                self._columns(problem, some, strides, columns, piece, config)
                into = result[first : first + images]
                self._gather(problem, some, strides, (columns, order, starts, into), piece, config)

    @staticmethod
    def _lists(
        problem: DeformProblem, offset: Any, strides: Strides, samples: int, images: int, config: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        """Return the samples in the order of their lists, and where each list begins."""
        import torch

        conv = problem.conv
        cells = _cells(conv)
        lists = images * problem.offset_groups * cells
        keys = torch.empty(samples, dtype=torch.int64, device=offset.device)
        shared = _without(
            deform_arguments(problem, strides, {}, 0), "x_", "w_", "y_", "mask_", "bias_", "c_per", "k_per"
        )
        shared["POSITION"] = shared["ACC_DTYPE"]
        for name in ("n", "groups", "PRECISION", "ACC_DTYPE", "INDEX64"):
            del shared[name]
        shared |= {"samples": samples, "lists": lists, "cells": cells, "BLOCK": _CELLS["BLOCK"]}
        kernel = KernelReference("conv.deform_grad", "_conv_deform_cells_kernel")
        grid = (ceil_div(samples, _CELLS["BLOCK"]),)
        launch_kernel(problem, kernel, grid, {"offset": offset, "keys": keys}, shared, _CELLS)
        keys, order = torch.sort(keys, stable=True)
        starts = torch.searchsorted(keys, torch.arange(lists + 1, device=offset.device))
        return order, starts

    @staticmethod
    def _columns(
        problem: DeformProblem, some: Mapping[str, Any], strides: Strides, columns: Any, piece: dict[str, int],
        config: Mapping[str, Any],
    ) -> None:  # fmt: skip
        conv, segment = problem.conv, piece["c_per_segment"]
        rows, taps = piece["n"] * prod(conv.output_size), prod(conv.kernel)
        most = (rows + config["BLOCK_M"]) * taps * piece["segments"] * segment
        arguments = deform_arguments(problem, strides, config, most) | piece
        dropped = ("x_", "offset_", "mask_", "bias_", "c_per_offset", "pad_", "STRIDE_", "DILATION_", "NDIM")
        arguments = _without(arguments, *dropped)
        for name in ("groups", "d", "h", "w"):
            del arguments[name]
        arguments["tiles_n"] = ceil_div(segment, config["BLOCK_N"])
        grid = (ceil_div(rows, config["BLOCK_M"]) * taps * piece["segments"] * arguments["tiles_n"],)
        pointers = {"y": some["y"], "w": some["w"], "columns": columns}
        kernel = KernelReference("conv.deform_grad", "_conv_deform_columns_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, config)

    @staticmethod
    def _gather(
        problem: DeformProblem, some: Mapping[str, Any], strides: Mapping[str, Any], tensors: tuple[Any, ...],
        piece: dict[str, int], config: Mapping[str, Any],
    ) -> None:  # fmt: skip
        conv, segment = problem.conv, piece["c_per_segment"]
        columns, order, starts, into = tensors
        rows = piece["n"] * prod(conv.input_size)
        most = max(rows + _GATHER["BLOCK_M"], columns.numel())
        tile = {
            "BLOCK_M": _GATHER["BLOCK_M"],
            "BLOCK_N": min(32 if conv.dtype == "float64" else 64, max(16, power_of_two(segment))),
        }
        forced = {name: config[name] for name in ("INDEX64",) if name in config}
        arguments = deform_arguments(problem, {**strides, "x": into.stride()}, tile | forced, most) | piece
        arguments = _without(arguments, "w_", "y_", "bias_", "c_per_group", "k_per", "PRECISION")
        del arguments["groups"]
        arguments["tiles_n"] = ceil_div(segment, tile["BLOCK_N"])
        arguments["cells"] = _cells(conv)
        grid = (ceil_div(rows, tile["BLOCK_M"]) * piece["segments"] * arguments["tiles_n"],)
        pointers = {"offset": some["offset"], "mask": some.get("mask"), "columns": columns}
        pointers |= {"order": order, "starts": starts, "x": into}
        kernel = KernelReference("conv.deform_grad", "_conv_deform_gather_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, _GATHER)


class DeformWgrad(_Deform):
    """Weight gradient: the reduction over positions in splits, whose partial sums a second pass adds in order."""

    id = "triton.conv.deform.wgrad"
    kind = "wgrad"

    @staticmethod
    def _tiles(problem: DeformProblem, config: Mapping[str, Any]) -> tuple[int, int]:
        conv, segment = problem.conv, problem.segment
        c, k = conv.c // conv.groups, conv.k // conv.groups
        return ceil_div(k, config["BLOCK_M"]), c // segment * ceil_div(segment, config["BLOCK_N"])

    @staticmethod
    def _elements(problem: DeformProblem) -> int:
        conv = problem.conv
        return prod(conv.w_shape) + (conv.k if conv.bias else 0)

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, DeformProblem)
        conv = problem.conv
        tile = _tile(conv, (conv.k // conv.groups, problem.segment, conv.n * prod(conv.output_size)))
        tile["BLOCK_N"] = min(tile["BLOCK_N"], 64)
        steps = ceil_div(conv.n * prod(conv.output_size), tile["BLOCK_K"])
        tiles = conv.groups * prod(conv.kernel) * prod(self._tiles(problem, tile))
        room = workspace_limit() // max(self._elements(problem) * _accumulator_bytes(problem), 1)
        splits = max(min(_PROGRAMS // max(tiles, 1), steps // _LEAST_STEPS, _MOST_SPLITS, room), 1)
        splits = ceil_div(steps, ceil_div(steps, splits)) if splits > 1 else 1
        yield tile | {"splits": splits}

    def workspace(self, problem: DeformProblem, config: Mapping[str, Any]) -> int:
        splits = int(config["splits"])
        return splits * self._elements(problem) * _accumulator_bytes(problem) if splits > 1 else 0

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, DeformProblem)
        return wgrad_work(problem, configs, problem.segment)

    def launch(
        self, problem: DeformProblem, call: Call, tensors: dict[str, Any], strides: dict[str, Any],
        config: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        import torch

        conv, splits = problem.conv, config["splits"]
        result = call.kind.empty(conv.result_shape, conv.dtype, conv.device, conv.result_format)
        of_bias = call.kind.empty((conv.k,), conv.dtype, conv.device, CONTIGUOUS) if conv.bias else None
        both = result if of_bias is None else (result, of_bias)
        if 0 in conv.result_shape:
            if of_bias is not None and conv.k:
                as_tensor(torch, of_bias).copy_(tensors["y"].sum([0, *range(2, 2 + conv.ndim)]))
            return both
        w, bias = as_tensor(torch, result), as_tensor(torch, of_bias)
        strides["w"] = w.stride()
        pixels = conv.n * prod(conv.output_size)
        elements = self._elements(problem)
        arguments = deform_arguments(problem, strides, config, max(pixels + config["BLOCK_K"], splits * elements))
        arguments = _without(arguments, "bias_", "offset_groups", "n")
        tiles = self._tiles(problem, config)
        steps = ceil_div(pixels, config["BLOCK_K"])
        arguments |= {"pixels": pixels, "splits": splits, "steps_per_split": ceil_div(steps, splits)}
        arguments |= {"tiles_m": tiles[0], "tiles_n": tiles[1], "w_stride_split": 0}
        pointers = {name: tensors.get(name) for name in ("y", "x", "offset", "mask")} | {"w": w, "bias": bias}
        if splits > 1:
            sums = getattr(torch, "float64" if conv.dtype == "float64" else "float32")
            partial = torch.empty(splits * elements, dtype=sums, device=w.device)
            pointers |= {"w": partial, "bias": partial[prod(conv.w_shape) :] if conv.bias else None}
            c, taps = conv.c // conv.groups, (arguments["T"], arguments["R"], arguments["S"])
            arguments |= {"w_stride_split": elements, "w_stride_k": prod(taps) * c, "w_stride_c": 1}
            arguments |= {"w_stride_t": taps[1] * taps[2] * c, "w_stride_r": taps[2] * c, "w_stride_s": c}
        grid = (splits * conv.groups * prod(conv.kernel) * prod(tiles),)
        kernel = KernelReference("conv.deform_wgrad", "_conv_deform_wgrad_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, config)
        if splits > 1:
            summed = {name: strides[name] for name in ("x", "y", "w")}
            arguments = wgrad_sum_arguments(conv, summed, config)
            kernel = KernelReference("conv.wgrad", "_conv_wgrad_sum_kernel")
            pointers = {"partial": pointers["w"], "w": w, "bias": bias}
            launch_kernel(problem, kernel, (ceil_div(elements, arguments["BLOCK"]),), pointers, arguments, _SUM)
        return both


SOLVERS: tuple[Solver, ...] = (DeformFprop(), DeformDgrad(), DeformWgrad())
