"""Who is measured: gpuconv, what PyTorch runs (cuDNN for most convolutions), Inductor, FlagGems and TileOPs.

Every contender gets the same numbers, the same dtype and the same precision. cuDNN searches for its fastest algorithm
(``benchmark=True``) and is measured in both memory formats; summaries take the better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.dispatch import backends, candidates, record_plans, select
from gpuconv.problem import ConvProblem, Problem

from .calls import Tensors, aten_call, in_format, our_call, shape_operands

__all__ = ["CONTENDERS", "Contender", "plain", "settings", "version_of"]

Call = Callable[[], Any]

_MOST_CUPY_FLOPS = 50e9
"""Work of a convolution beyond which CuPy's kernels are not timed."""


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan's configuration as JSON has it."""
    return {name: value if isinstance(value, int | float | None) else str(value) for name, value in config.items()}


@contextmanager
def settings(problem: Problem | None, search: bool = True) -> Iterator[None]:
    """Give torch the precision of `problem` and let cuDNN search for algorithms, or not."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    benchmark = torch.backends.cudnn.benchmark
    precision = getattr(problem, "precision", "ieee")
    try:
        conv.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        # Not by the property: Inductor asks by the older name, which refuses to answer where the newer one was set.
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        # What `torch.backends.cudnn.benchmark = search` does; that refuses once torch's own test suite was imported.
        torch._C._set_cudnn_benchmark(search)
        yield
    finally:
        torch.set_float32_matmul_precision("high" if before[1] == "tf32" else "highest")
        conv.fp32_precision = before[0]
        torch._C._set_cudnn_benchmark(benchmark)


def version_of(module: str, *distributions: str) -> str | None:
    """Return the installed version of a package, ``None`` where it is missing. Imports nothing."""
    for name in distributions or (module,):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown" if find_spec(module) else None


class Contender:
    """One way to compute problems. `ours` are gpuconv's."""

    name: str
    label: str
    ours = False

    def why_not(self, problem: Problem) -> str | None:
        """Return why it does not compute `problem` here, or ``None``."""
        return None

    def call(self, problem: Problem, tensors: Tensors) -> Call:
        """Return the call on one set of operands (of the problem's memory formats)."""
        raise NotImplementedError

    def solver(self, problem: Problem, call: Call) -> dict[str, Any]:
        """Run `call` once and return what ran, as far as this contender can tell."""
        call()
        return {}


class Gpuconv(Contender):
    """The library under test, through its public functions."""

    name, label = "gpuconv", "gpuconv"
    ours = True

    def backend(self, problem: Problem) -> str | None:
        """Return the backend that is forced: outside of dry runs the one that users get."""
        return "triton" if problem.device == "cpu" else None

    def call(self, problem: Problem, tensors: Tensors) -> Call:
        return our_call(problem, tensors, self.backend(problem))

    def stands(self, problem: Problem, record: Mapping[str, Any]) -> bool:
        """Tell whether what a record measured is still the solver and the config that a call runs."""
        plan = select(problem, self.backend(problem))
        return record.get("solver") == plan.solver.id and record.get("config") == plain(plan.config)

    def solver(self, problem: Problem, call: Call) -> dict[str, Any]:
        with record_plans() as plans:
            call()
        (plan,) = plans
        if plan.solver.id.partition(".")[0] not in ("triton", "cupy"):
            raise AssertionError(f"{plan.solver.id} ran, not a kernel for GPUs")
        if plan.problem != problem:
            raise AssertionError(f"the call ran {plan.problem}, not {problem}")
        return {"solver": plan.solver.id, "config": plain(plan.config)}


class GpuconvCupy(Gpuconv):
    """gpuconv's CUDA C++ kernels, which run where Triton is missing: are they better anywhere?"""

    name, label = "gpuconv_cupy", "gpuconv, CuPy"

    def backend(self, problem: Problem) -> str | None:
        return "cupy"

    def why_not(self, problem: Problem) -> str | None:
        if problem.device == "cpu":
            return "not in dry runs: it compiles for the GPU"
        missing = backends()["cupy"].missing()
        if missing:
            return missing
        if isinstance(problem, ConvProblem) and problem.flops > _MOST_CUPY_FLOPS:
            return f"{problem.flops:.2g} FLOP are left to the Triton kernels: one launch would take too long"
        first = candidates(problem, "cupy")[0]
        return first.reason


class Torch(Contender):
    """PyTorch's own call, in one memory format."""

    def __init__(self, layout: str) -> None:
        self.layout = layout
        self.name = f"torch_{layout}"
        self.label = f"torch, {layout}"

    def call(self, problem: Problem, tensors: Tensors) -> Call:
        spatial = {name: t for name, t in tensors.items() if t.ndim == problem.ndim + 2}
        return aten_call(problem, {**tensors, **{name: in_format(t, self.layout) for name, t in spatial.items()}})


class Inductor(Contender):
    """``torch.compile`` with ``max-autotune``, on channels-last tensors; our clock captures the graph."""

    name, label = "inductor", "Inductor max-autotune"

    def why_not(self, problem: Problem) -> str | None:
        if problem.device == "cpu":
            return "not in dry runs: it compiles for the GPU"
        return None

    def call(self, problem: Problem, tensors: Tensors) -> Call:
        # The operand of which a gradient reads the shape alone is made here, not in the compiled function.
        tensors = {**tensors, **shape_operands(problem, tensors)}
        compiled = self._compiled(problem, tuple(tensors))
        values = tuple(tensors.values())
        return lambda: compiled(*values)

    def __init__(self) -> None:
        self._cache: dict[tuple[Problem, tuple[str, ...]], Any] = {}

    def _compiled(self, problem: Problem, names: tuple[str, ...]) -> Any:
        if (problem, names) not in self._cache:
            torch._dynamo.reset()  # one problem at a time: earlier graphs are of no use
            self._cache.clear()

            def function(*values: torch.Tensor) -> Any:
                return aten_call(problem, dict(zip(names, values)))()

            self._cache[problem, names] = torch.compile(
                function, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True
            )
        return self._cache[problem, names]


class FlagGems(Contender):
    """FlagGems' explicit forward convolutions, on contiguous tensors as its kernels expect them."""

    name, label = "flag_gems", "FlagGems"

    def why_not(self, problem: Problem) -> str | None:
        if version_of("flag_gems", "flag_gems", "flag-gems") is None:
            return "flag_gems is not installed"
        if not isinstance(problem, ConvProblem) or problem.kind != "fprop":
            return "has no call that is compared here but forward convolution"
        return None

    def call(self, problem: Problem, tensors: Tensors) -> Call:
        import flag_gems

        assert isinstance(problem, ConvProblem)
        function = getattr(flag_gems.ops, f"conv{problem.ndim}d")
        x, w = (in_format(tensors[name], CONTIGUOUS) for name in "xw")
        geometry = (list(problem.stride), list(problem.pad_lo), list(problem.dilation), problem.groups)
        return lambda: function(x, w, tensors.get("bias"), *geometry)


class TileOps(Contender):
    """TileOPs' forward convolutions, whose operators take NCHW tensors."""

    name, label = "tileops", "TileOPs"

    def why_not(self, problem: Problem) -> str | None:
        if version_of("tileops") is None:
            return "tileops is not installed"
        if not isinstance(problem, ConvProblem) or problem.kind != "fprop":
            return "has no call that is compared here but forward convolution"
        return None

    def call(self, problem: Problem, tensors: Tensors) -> Call:
        from tileops import ops

        assert isinstance(problem, ConvProblem)
        operator = getattr(ops, f"Conv{problem.ndim}dFwdOp")
        geometry = {"stride": problem.stride, "padding": problem.pad_lo, "dilation": problem.dilation}
        operation = operator(**geometry, groups=problem.groups)
        arguments = [in_format(tensors[name], CONTIGUOUS) for name in "xw"]
        arguments += [tensors["bias"]] if "bias" in tensors else []
        return lambda: operation(*arguments)


_EVERYBODY = (
    Gpuconv(), Torch(CHANNELS_LAST), Torch(CONTIGUOUS), GpuconvCupy(), Inductor(), FlagGems(), TileOps(),
)  # fmt: skip

CONTENDERS: dict[str, Contender] = {contender.name: contender for contender in _EVERYBODY}
