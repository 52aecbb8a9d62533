"""The problems of KernelBench: their sizes follow from their geometry, and benchmarks take them by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from report_runs import options_for

from bench import kernelbench
from bench.calls import make_tensors, our_call, tensor_shapes
from bench.cases import all_cases, everything, kernelbench_problems, networks
from bench.gpu_report import arguments, report_cases
from bench.supervise import worker_command
from bench.worker import Worker
from gpuconv import shapes
from gpuconv.arrays import CONTIGUOUS
from gpuconv.problem import ConvProblem, PoolProblem

RAW = json.loads(kernelbench.FILE.read_text())["problems"]


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: str(raw["problem"]))
def test_sizes_follow_from_the_geometry(raw: dict) -> None:
    assert raw["h100_eager_ms"] > 0 and raw["h100_inductor_ms"] > 0
    for op in raw["ops"]:
        x, y = op["input"], op["output"]
        assert x[0] == y[0] == raw["ops"][0]["input"][0]
        geometry = (op["stride"], op["padding"], op["padding"], op["dilation"])
        if "Pool" in op["module"]:
            ceil = (False,) * len(op["kernel"])
            sizes = shapes.map_axes(shapes.pool_output_size, x[2:], op["kernel"], *geometry, ceil)
            assert [x[1], *sizes] == y[1:]
            continue
        large, small = (y, x) if "Transpose" in op["module"] else (x, y)
        k, c_per_group, *taps = op["weight"]
        assert (k, c_per_group * op["groups"]) == (small[1], large[1])
        assert list(shapes.map_axes(shapes.conv_output_size, large[2:], taps, *geometry)) == small[2:]


def test_calls_are_contiguous_and_in_float32_with_products_in_tf32() -> None:
    kinds: Counter[str] = Counter()
    for one, raw in zip(kernelbench.published(), RAW, strict=True):
        problems = kernelbench_problems(one)
        assert (one.number, one.eager_ms) == (raw["problem"], raw["h100_eager_ms"])
        assert len(problems) == len(raw["ops"])
        for problem, op in zip(problems, raw["ops"], strict=True):
            assert problem.dtype == "float32" and problem.device == "cuda:0" and problem.array == "torch"
            assert problem.x_format == problem.y_format == CONTIGUOUS
            transposed = "Transpose" in op["module"]
            operand = problem.y_shape if transposed else problem.x_shape
            assert (operand, problem.result_shape) == (tuple(op["input"]), tuple(op["output"]))
            if isinstance(problem, ConvProblem):
                assert problem.precision == "tf32" and problem.w_format == CONTIGUOUS
                assert problem.w_shape == tuple(op["weight"]) and problem.bias == op["bias"]
                assert problem.kind == ("transposed" if transposed else "fprop")
            else:
                assert isinstance(problem, PoolProblem) and problem.kernel == tuple(op["kernel"])
                assert problem.pool == op["module"][:3].lower() and problem.count_include_pad
            kinds[op["module"]] += 1
    assert len(kinds) == 12 and sum(kinds.values()) == len(RAW) + 1  # every module with 1 to 3 axes; one has two calls


def test_the_benchmark_takes_them_by_their_name_alone() -> None:
    cases = all_cases([kernelbench.NAME])
    assert len(cases) == len({case.key for case in cases}) == len(RAW) + 1
    assert {use.network for case in cases for use in case.uses} == {kernelbench.NAME}
    assert all_cases([kernelbench.NAME], ["float16"], passes=["transposed"]) == [
        case for case in cases if case.problem.kind == "transposed"
    ]
    assert all_cases([kernelbench.NAME], phases=["training"]) == []
    usual = {case.key for case in all_cases(numbers=["float16"], phases=["inference"])}
    assert not usual & {case.key for case in cases}
    both = all_cases(["vgg16", kernelbench.NAME], ["float16"], ["inference"])
    assert {use.network for case in both for use in case.uses} == {"vgg16", kernelbench.NAME}
    assert set(everything()) == {*networks(), "pooling", kernelbench.NAME}
    with pytest.raises(ValueError, match=r"no workload named lenet; there are .*kernelbench"):
        all_cases(["lenet", kernelbench.NAME])


def test_they_are_called_as_the_file_describes_them() -> None:
    """On tensors without memory: the arguments pass the public function's checks."""
    for one in kernelbench.published():
        for problem in kernelbench_problems(one):
            tensors = make_tensors(problem, "meta")
            assert {name: tuple(t.shape) for name, t in tensors.items()} == {
                name: shape for name, (shape, _) in tensor_shapes(problem).items()
            }
            call = our_call(problem, tensors)
            assert call.func.__name__.startswith(problem.op.split("_with")[0].rstrip("123d"))


def test_the_report_passes_networks_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_for(tmp_path, "--network", "vgg16", "kernelbench", "--stage", "benchmark")
    command = worker_command(options, ["benchmark"], "0/1", 1e12)
    place = command.index("--network")
    assert command[place : place + 3] == ["--network", "vgg16", "kernelbench"]
    assert arguments(command[2:]).network == ["vgg16", "kernelbench"]
    assert "--network" not in worker_command(options_for(tmp_path), ["benchmark"], "0/1", 1e12)
    worker = Worker(options, 1e12)
    try:
        assert worker.context.networks == ["vgg16", "kernelbench"]
        asked = []
        monkeypatch.setattr("bench.items.all_cases", lambda names: asked.append(names) or [])
        object.__setattr__(worker.context.clock, "device", "cuda")
        assert worker.context.cases() == [] and asked == [["vgg16", "kernelbench"]]
    finally:
        worker.store.close()
    shown = {use.network for case in report_cases(dry=False) for use in case.uses}
    assert shown == set(everything())
