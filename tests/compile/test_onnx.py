"""Exported to ONNX and run by onnxruntime: what gpuconv's operators are there, and what is refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("onnxscript", reason="not run: onnxscript is not installed")
ort = pytest.importorskip("onnxruntime", reason="not run: onnxruntime is not installed")

from onnx_cases import FAMILIES, REFUSED, images, weights  # noqa: E402

import gpuconv  # noqa: E402

DIM = torch.export.Dim.DYNAMIC


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The exporter names every package that it has no operators of."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


class Calls(torch.nn.Module):
    """Calls as one model."""

    def __init__(self, calls: dict[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, *args: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for call in self.calls.values():
            result = call(*args)
            found += result if isinstance(result, tuple) else [result]
        return found


def exported(model: torch.nn.Module, args: tuple[torch.Tensor, ...], **settings: Any) -> Any:
    table = gpuconv.onnx_translations()
    with torch.no_grad():
        model(*args)  # which makes the weights
        return torch.onnx.export(
            model.eval(), args, dynamo=True, custom_translation_table=table, verbose=False, **settings
        )


def run(program: Any, args: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(program.model_proto.SerializeToString(), options, ["CPUExecutionProvider"])
    named = {spec.name: array.numpy() for spec, array in zip(session.get_inputs(), args, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, named)]


def operators(program: Any) -> list[str]:
    return [node.op_type for node in program.model.graph]


def compare(calls: dict[str, Any], program: Any, args: tuple[torch.Tensor, ...]) -> None:
    """Compare every result, integers to the last."""
    results = iter(run(program, args))
    for name, call in calls.items():
        wanted = call(*args)
        for ours in wanted if isinstance(wanted, tuple) else (wanted,):
            kinds = {"rtol": 1e-4, "atol": 2e-5} if ours.is_floating_point() else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(next(results), ours, **kinds, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_with_a_dynamic_batch(name: str) -> None:
    calls, args = FAMILIES[name].calls, images(2)
    program = exported(Calls(calls), args, dynamic_shapes=(tuple({0: DIM} for _ in args),))
    assert not [node for node in program.model.graph if node.domain]
    for batch in (2, 3):
        compare(calls, program, images(batch))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.dynamic])
def test_equal_with_dynamic_sizes(name: str) -> None:
    calls, args = FAMILIES[name].calls, images(2)
    every = tuple({axis: DIM for axis in (0, *range(2, array.dim()))} for array in args)
    program = exported(Calls(calls), args, dynamic_shapes=(every,))
    compare(calls, program, args)
    compare(calls, program, images(3, ((20,), (12, 14), (8, 7, 6))))


def test_one_node_does_what_one_can() -> None:
    """Asymmetric padding, a bias, ceil mode and an output padding are no nodes of their own."""
    calls = {
        "convolution": lambda b: gpuconv.conv2d(b, weights(6, 4, 3, 2), weights(6), padding=((0, 1), (2, 1))),
        "transposed": lambda b: gpuconv.conv_transpose2d(b, weights(4, 6, 3, 3), stride=2, output_padding=1),
        "maximum": lambda b: gpuconv.max_pool2d(b, 2, 2, padding=((0, 1), (1, 0)), ceil_mode=True),
        "average": lambda b: gpuconv.avg_pool2d(b, 3, 2, padding=1, count_include_pad=False),
        "global": lambda b: gpuconv.adaptive_avg_pool2d(b, 1),
    }
    program = exported(Calls(calls), images(2)[1:2], dynamic_shapes=(({0: DIM},),))
    assert operators(program) == ["Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool"]


def test_half_precision_stays() -> None:
    calls = {"x": lambda b: gpuconv.conv2d(b, weights(6, 4, 3, 3).half(), activation="gelu")}
    program = exported(Calls(calls), (images(2)[1].half(),))
    assert all(value.dtype.name == "FLOAT16" for value in program.model.graph.outputs)
    types = {output.dtype.name for node in program.model.graph for output in node.outputs if output.dtype is not None}
    assert "FLOAT" not in types


def reasons(error: BaseException | None) -> str:
    """Return the messages of an error and its causes."""
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__
    return "\n".join(found)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_says_so(name: str) -> None:
    call, reason = REFUSED[name]
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(Calls({"refused": call}), images(2))
    assert f"{name} cannot be exported to ONNX: " in reasons(caught.value) and reason in reasons(caught.value)


def test_sizes_that_are_dynamic_are_refused_where_attributes_follow_from_them() -> None:
    calls = {"same": lambda b: gpuconv.conv2d(b, weights(6, 4, 3, 3), stride=2, padding="same_upper")}
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(Calls(calls), images(2)[1:2], dynamic_shapes=(({2: DIM, 3: DIM},),))
    assert "conv2d cannot be exported to ONNX: padding follows from a size that is dynamic" in reasons(caught.value)
    pool = {"adaptive": lambda b: gpuconv.adaptive_avg_pool2d(b, 2)}
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(Calls(pool), images(2)[1:2], dynamic_shapes=(({2: DIM, 3: DIM},),))
    assert "adaptive_avg_pool2d cannot be exported to ONNX: its windows follow" in reasons(caught.value)


def test_every_operator_has_an_entry() -> None:
    table = gpuconv.onnx_translations()
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("gpuconv::")}
    assert {operator.name() for operator in table} == names and len(names) > 12


def test_the_table_alone_imports_no_torch() -> None:
    """Importing gpuconv, and naming the room, costs nothing; without onnxscript the table says what is missing."""
    code = """
import sys, gpuconv
assert "torch" not in sys.modules and "gpuconv.export" not in sys.modules
gpuconv.onnx_translations
assert "torch" not in sys.modules and "onnxscript" not in sys.modules
import importlib.util as util
import gpuconv.export.table as table
table.find_spec = lambda name: None
try:
    gpuconv.onnx_translations()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install onnx onnxscript" in done.stdout, done.stderr


@pytest.mark.parametrize("masked", [False, True], ids=["version 1", "version 2"])
def test_deformable_convolution(masked: bool) -> None:
    """Two groups of offsets, channels and filters; asymmetric padding, and dilation."""
    generator = torch.Generator().manual_seed(0)
    x, w, bias = images(2)[1], weights(6, 2, 3, 2), weights(6)
    settings = {"stride": (2, 1), "padding": ((1, 0), (1, 2)), "dilation": (1, 2)}
    size = gpuconv.conv2d(x, weights(6, 4, 3, 2), **settings).shape[2:]
    offset = torch.randn(2, 2 * 2 * 6, *size, generator=generator)
    mask = torch.rand(2, 2 * 6, *size, generator=generator)
    calls = {"deformed": lambda *a: gpuconv.deform_conv2d(*a[:2], w, bias, mask=a[2] if masked else None, **settings)}
    args = (x, offset, mask) if masked else (x, offset)
    program = exported(Calls(calls), args)
    assert operators(program) == ["DeformConv"]
    compare(calls, program, args)
