"""Problems of the codegen lane: the layers of real networks, and awkward ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuconv import shapes
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.problem import ConvProblem

WORKLOADS = Path(__file__).parents[2] / "bench" / "workloads"

BATCH = 32


def conv_problem(
    x: Sequence[int],
    w: Sequence[int],
    dtype: str = "float16",
    formats: str = CHANNELS_LAST,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    **options: Any,
) -> ConvProblem:
    """Describe a forward convolution of shapes `x` and `w` on a GPU, every tensor in format `formats`."""
    ndim = len(w) - 2

    def axes(value: int | Sequence[int]) -> tuple[int, ...]:
        return (value,) * ndim if isinstance(value, int) else tuple(value)

    strides, pads, dilations = axes(stride), axes(padding), axes(dilation)
    output = shapes.map_axes(shapes.conv_output_size, x[2:], w[2:], strides, pads, pads, dilations)
    return ConvProblem(
        op=f"conv{ndim}d", kind="fprop", n=x[0], c=x[1], k=w[0], groups=groups, input_size=tuple(x[2:]),
        kernel=tuple(w[2:]), output_size=output, stride=strides, pad_lo=pads, pad_hi=pads, dilation=dilations,
        padding_mode=options.pop("padding_mode", "zeros"), dtype=dtype, device="cuda:0", array="torch",
        x_format=formats, w_format=formats, y_format=formats, **options,
    )  # fmt: skip


def workload_problems() -> Iterator[tuple[str, ConvProblem]]:
    """Yield every layer of every workload that convolves, at batch 32 in channels-last float16, as a forward pass."""
    for path in sorted(WORKLOADS.glob("*.json")):
        for layer in json.loads(path.read_text())["layers"]:
            if not layer["op"].startswith("conv"):
                continue
            transposed = layer["op"].startswith("conv_transpose")
            problem = conv_problem(
                (BATCH, *layer["output" if transposed else "input"]), layer["weight"], stride=layer["stride"],
                padding=layer["padding"], dilation=layer["dilation"], groups=layer["groups"], bias=layer["bias"],
            )  # fmt: skip
            assert problem.output_size == tuple(layer["input" if transposed else "output"][1:]), (path, layer)
            sizes, filters = ("x".join(map(str, layer[key])) for key in ("input", "weight"))
            name = f"{path.stem} {layer['op']} {sizes} * {filters} s{layer['stride'][0]} d{layer['dilation'][0]}"
            yield (f"transposed/{name}", replace(problem, kind="transposed")) if transposed else (name, problem)


def awkward_problems() -> Iterator[tuple[str, ConvProblem]]:
    """Yield at least 30 problems that networks seldom have and compilers dislike."""
    square, filters = (8, 64, 28, 28), (96, 64, 3, 3)
    same = {"padding": 1}
    for dtype in ("float16", "bfloat16", "float64"):
        for formats in (CHANNELS_LAST, CONTIGUOUS):
            yield f"{dtype} {formats}", conv_problem(square, filters, dtype, formats, **same)
    for precision in ("ieee", "tf32", "tf32x3"):
        for formats in (CHANNELS_LAST, CONTIGUOUS):
            name = f"float32 {precision} {formats}"
            yield name, conv_problem(square, filters, "float32", formats, precision=precision, **same)
    for channels in (1, 3, 8, 24, 40, 65):
        yield f"{channels} channels", conv_problem((8, channels, 28, 28), (96, channels, 3, 3), **same)
    for filters_out in (1, 10, 100):
        yield f"{filters_out} filters", conv_problem(square, (filters_out, 64, 3, 3), **same)
    for mode in ("reflect", "replicate", "circular"):
        yield f"{mode} padding", conv_problem(square, filters, padding_mode=mode, **same)
    every = {"bias": True, "scale": True, "shift": True, "residual": True}
    for activation in ("relu", "silu", "gelu", "gelu_tanh", "tanh", "hardswish"):
        yield f"epilogue {activation}", conv_problem(square, filters, activation=activation, **every, **same)
    yield "float64 epilogue", conv_problem(square, filters, "float64", activation="gelu", **every, **same)
    yield "7x7 computed bounds", conv_problem((8, 64, 56, 56), (64, 64, 7, 7), padding=3)
    yield "dilated 2x3, strides 3x1", conv_problem(square, filters, stride=(3, 1), dilation=(2, 3), padding=(2, 3))
    yield "stride over kernel", conv_problem(square, (96, 64, 2, 2), stride=5)
    yield "depthwise 3x3", conv_problem(square, (64, 1, 3, 3), groups=64, **same)
    yield "32 groups of 4", conv_problem((8, 128, 28, 28), (128, 4, 3, 3), groups=32, **same)
    yield "conv1d contiguous", conv_problem((8, 64, 4000), (64, 64, 7), "float16", CONTIGUOUS, padding=3)
    yield "conv1d NLC", conv_problem((8, 64, 4000), (64, 64, 7), padding=3)
    yield "conv3d contiguous", conv_problem((2, 32, 16, 28, 28), (64, 32, 3, 3, 3), "float16", CONTIGUOUS, padding=1)
    yield "conv3d", conv_problem((2, 32, 16, 28, 28), (64, 32, 3, 3, 3), padding=1)
    yield "1x1", conv_problem((8, 256, 14, 14), (64, 256, 1, 1))
    for channels, filters_out in ((8, 24), (24, 24), (40, 40), (24, 100)):
        name = f"{channels} channels, {filters_out} filters"
        yield name, conv_problem((8, channels, 28, 28), (filters_out, channels, 3, 3), "bfloat16", **same)
    yield "24 channels 1x1", conv_problem((8, 24, 56, 56), (144, 24, 1, 1))
    yield "4 groups of 24", conv_problem((8, 96, 28, 28), (96, 24, 3, 3), groups=4, **same)
    for channels in (24, 64):
        problem = conv_problem((8, channels, 28, 28), (96, channels, 3, 3), **same)
        yield f"{channels} channels, contiguous weights", replace(problem, w_format=CONTIGUOUS)
    yield "1x1, contiguous weights", replace(conv_problem((8, 256, 14, 14), (64, 256, 1, 1)), w_format=CONTIGUOUS)
    for dtype in ("float16", "float32", "float64"):
        for formats in (CHANNELS_LAST, CONTIGUOUS):
            name = f"batch 1, 7x7 map {dtype} {formats}"
            yield name, conv_problem((1, 512, 7, 7), (512, 512, 3, 3), dtype, formats, **same)
    yield "batch 1, 7x7 map epilogue", conv_problem((1, 520, 7, 7), (40, 520, 3, 3), activation="gelu", **every, **same)
    yield "64-bit", conv_problem((512, 64, 320, 320), (64, 64, 3, 3), **same)
    yield (
        "64-bit contiguous conv3d",
        conv_problem((1, 16, 600, 600, 600), (16, 16, 3, 3, 3), "float32", CONTIGUOUS, padding=1),
    )


def fprop_pass_problems() -> Iterator[tuple[str, ConvProblem]]:
    """Yield problems whose weights are packed, or whose splits are added, named after the pass."""
    few, filters = (1, 512, 7, 7), (512, 512, 3, 3)
    every = {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "gelu"}
    for dtype in ("float16", "bfloat16"):
        yield f"fprop_pack/{dtype} 3x3", conv_problem(few, filters, dtype, CONTIGUOUS, padding=1)
    yield (
        "fprop_pack/float16 3x3x3",
        conv_problem((1, 48, 7, 7, 7), (64, 48, 3, 3, 3), "float16", CONTIGUOUS, padding=1),
    )
    for dtype in ("float16", "float32", "float64"):
        for formats in (CHANNELS_LAST, CONTIGUOUS):
            yield f"fprop_sum/{dtype} {formats}", conv_problem(few, filters, dtype, formats, padding=1)
            yield (
                f"fprop_sum/{dtype} {formats} epilogue",
                conv_problem(few, filters, dtype, formats, padding=1, **every),
            )


def transposed_problems() -> Iterator[tuple[str, ConvProblem]]:
    """Yield awkward transposed convolutions."""
    square, filters = (8, 64, 56, 56), (96, 64, 4, 4)
    every = {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "gelu"}
    for dtype in ("float16", "float32", "float64"):
        for formats in (CHANNELS_LAST, CONTIGUOUS):
            problem = conv_problem(square, filters, dtype, formats, stride=2, padding=1, **every)
            yield f"transposed/{dtype} {formats} epilogue", replace(problem, kind="transposed")


def gradient_problems() -> Iterator[tuple[str, ConvProblem]]:
    """Yield the gradients of every workload and of awkward problems, named after the kernel that computes them."""
    layers: list[tuple[str, ConvProblem]] = []
    square, filters, strided = (8, 64, 56, 56), (96, 64, 3, 3), {"stride": 2, "padding": 1}
    for dtype in ("float16", "bfloat16", "float64"):
        for formats in (CHANNELS_LAST, CONTIGUOUS):
            layers.append((f"{dtype} {formats} stride 2", conv_problem(square, filters, dtype, formats, **strided)))
    for precision in ("ieee", "tf32", "tf32x3"):
        for formats in (CHANNELS_LAST, CONTIGUOUS):
            problem = conv_problem(square, filters, "float32", formats, precision=precision, **strided)
            layers.append((f"float32 {precision} {formats} stride 2", problem))
    for channels in (1, 3, 8, 16, 24, 65):
        layers.append((f"{channels} channels", conv_problem((8, channels, 28, 28), (96, channels, 3, 3), padding=1)))
    for filters_out in (1, 10, 100):
        layers.append((f"{filters_out} filters", conv_problem(square, (filters_out, 64, 3, 3), padding=1)))
    for mode in ("reflect", "replicate", "circular"):
        layers.append((f"{mode} stride 2", conv_problem(square, filters, padding_mode=mode, **strided)))
    layers += [
        ("7x7 computed bounds", conv_problem(square, (64, 64, 7, 7), padding=3)),
        ("dilated 2x3, strides 4x2", conv_problem(square, filters, stride=(4, 2), dilation=(2, 3), padding=(2, 3))),
        ("stride over kernel", conv_problem(square, (96, 64, 2, 2), stride=5)),
        ("patches 16x16", conv_problem((8, 3, 224, 224), (768, 3, 16, 16), stride=16)),
        ("depthwise 3x3 stride 2", conv_problem(square, (64, 1, 3, 3), groups=64, **strided)),
        ("32 groups of 4", conv_problem((8, 128, 28, 28), (128, 4, 3, 3), groups=32, padding=1)),
        ("conv1d NLC", conv_problem((8, 64, 4000), (64, 64, 7), stride=2, padding=3)),
        ("conv1d contiguous", conv_problem((8, 64, 4000), (64, 64, 7), "float16", CONTIGUOUS, stride=2, padding=3)),
        ("conv3d stride 2", conv_problem((2, 32, 16, 28, 28), (64, 32, 3, 3, 3), **strided)),
        (
            "conv3d contiguous",
            conv_problem((2, 32, 16, 28, 28), (64, 32, 3, 3, 3), "float16", CONTIGUOUS, padding=1),
        ),
        ("64-bit", conv_problem((512, 64, 320, 320), (64, 64, 3, 3), padding=1)),
        (
            "64-bit contiguous conv3d",
            conv_problem((1, 16, 600, 600, 600), (16, 16, 3, 3, 3), "float32", CONTIGUOUS, padding=1),
        ),
    ]
    for channels, filters_out in ((24, 96), (96, 24), (40, 240), (8, 8)):
        problem = conv_problem((8, channels, 28, 28), (filters_out, channels, 3, 3), padding=1, bias=True)
        layers.append((f"{channels} channels {filters_out} filters", problem))
    for precision in ("ieee", "tf32", "tf32x3"):
        problem = conv_problem(square, filters, "float32", precision=precision, padding=1, bias=True)
        layers.append((f"float32 {precision} bias", problem))
    layers.append(("float64 bias", conv_problem(square, filters, "float64", padding=1, bias=True)))
    for name, problem in (*layers, *workload_problems()):
        bare = name.removeprefix("transposed/")
        if problem.kind == "transposed":
            yield f"fprop/{bare}", replace(problem, kind="fprop", bias=False)
            yield f"wgrad/{bare}", replace(problem, kind="wgrad", bias=False)
        else:
            yield f"dgrad/{bare}", replace(problem, kind="dgrad", bias=False)
            yield f"wgrad/{bare}", replace(problem, kind="wgrad")
    yield "wgrad_sum/float16", replace(conv_problem(square, filters, **strided), kind="wgrad")
    yield "wgrad_sum/float16 bias", replace(conv_problem(square, filters, bias=True, **strided), kind="wgrad")
    yield "wgrad_sum/float64", replace(conv_problem(square, filters, "float64", **strided), kind="wgrad")
