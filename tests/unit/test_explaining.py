"""What the user is told: explanations of calls, and errors where nothing can run one."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tuning_cases import H200, pretended

import gpuconv
from gpuconv import dispatch
from gpuconv.backends.cupy import backend as cupy_backend
from gpuconv.backends.cupy import pool as cupy_pool
from gpuconv.backends.triton import backend as triton_backend
from gpuconv.dispatch.explanation import Candidate, _time
from gpuconv.dispatch.problems import problem_from_json
from gpuconv.problem import PoolProblem, Problem, SeparableProblem, placed

X, W = np.ones((2, 4, 9, 9), np.float32), np.ones((6, 4, 3, 3), np.float32)
X8, W8 = X.astype(np.int8), W.astype(np.int8)
Y, INDICES = gpuconv.max_pool2d(X, 3, 2, return_indices=True)

CALLS: dict[str, Callable[[], Any]] = {
    "conv2d": lambda: gpuconv.conv2d(X, W, np.ones(6, np.float32), padding=((1, 2), (0, 3)), activation="relu"),
    "depthwise": lambda: gpuconv.conv2d(X, W[:4, :1], groups=4, padding="same_upper", stride=2),
    "conv1d": lambda: gpuconv.conv1d(X[0, :, 0], W[..., 0], padding="causal"),
    "conv3d": lambda: gpuconv.conv3d(X[None], np.ones((3, 2, 1, 2, 3), np.float32)),
    "conv_transpose2d": lambda: gpuconv.conv_transpose2d(X, W[:4], stride=2),
    "conv2d_input_grad": lambda: gpuconv.conv2d_input_grad((2, 4, 11, 11), W, np.ones((2, 6, 9, 9), np.float32)),
    "conv2d_weight_grad": lambda: gpuconv.conv2d_weight_grad(X, W.shape, np.ones((2, 6, 7, 7), np.float32)),
    "max_pool2d": lambda: gpuconv.max_pool2d(X, 3, 2, return_indices=True),
    "max_pool2d backward": lambda: gpuconv.max_pool2d_with_indices_backward(Y, X, 3, 2, 0, 1, False, INDICES),
    "avg_pool2d backward": lambda: gpuconv.avg_pool2d_backward(Y, X, 3, 2),
    "avg_pool2d": lambda: gpuconv.avg_pool2d(X, 3, 2),
    "lp_pool2d": lambda: gpuconv.lp_pool2d(X, 2, 3),
    "lp_pool2d backward": lambda: gpuconv.lp_pool2d_backward(Y, X, 2, 3, 2),
    "adaptive_avg_pool2d backward": lambda: gpuconv.adaptive_avg_pool2d_backward(Y, X),
    "adaptive_max_pool2d backward": lambda: gpuconv.adaptive_max_pool2d_backward(Y, X, INDICES),
    "fractional_max_pool2d backward": lambda: gpuconv.fractional_max_pool2d_backward(Y, X, 3, 4, INDICES),
    "max_unpool2d backward": lambda: gpuconv.max_unpool2d_backward(X, Y, INDICES),
    "adaptive_avg_pool2d": lambda: gpuconv.adaptive_avg_pool2d(X, 3),
    "adaptive_max_pool1d": lambda: gpuconv.adaptive_max_pool1d(X[0], 3),
    "fractional_max_pool2d": lambda: gpuconv.fractional_max_pool2d(X, 2, output_size=3),
    "max_unpool2d": lambda: gpuconv.max_unpool2d(Y, INDICES, 3, 2),
    "unfold": lambda: gpuconv.unfold(X, 3),
    "scaled_conv2d": lambda: gpuconv.scaled_conv2d(
        X8, W8, np.ones(6, np.float32), padding="same", input_scale=0.5, weight_scale=np.ones(6, np.float32)
    ),
    "deform_conv2d": lambda: gpuconv.deform_conv2d(X, np.ones((2, 36, 7, 7), np.float32), W),
    "fold": lambda: gpuconv.fold(np.ones((2, 36, 49), np.float32), 9, 3),
}


def explained(call: str, **changes: Any) -> gpuconv.Explanation:
    """Return the explanation of a call, as if its arrays were elsewhere or of another kind."""
    problem = gpuconv.explain(CALLS[call]).problem
    return dispatch.explainer._explanation(placed(problem, **changes) if changes else problem, None)


def refusal(problem: Problem, backend: str | None = None) -> list[str]:
    dispatch.selection._plan.cache_clear()
    with pytest.raises(gpuconv.NoSolverError) as caught:
        dispatch.select(problem, backend)
    return str(caught.value).splitlines()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with NumPy alone."""
    monkeypatch.setattr(triton_backend, "_missing_package", lambda: "triton is not installed (pip install triton)")
    monkeypatch.setattr(cupy_backend, "_missing_package", lambda: "CuPy is not installed (pip install cupy)")


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """A host with such a GPU, as far as costs are concerned, with Triton and without CuPy."""
    monkeypatch.setattr(triton_backend, "_missing_package", lambda: None)
    monkeypatch.setattr(cupy_backend, "_missing_package", lambda: "CuPy is not installed (pip install cupy)")
    with pretended(monkeypatch, tmp_path, H200):
        yield


CUDA = {"device": "cuda:0", "array": "torch"}


# explanations


def test_reads_well() -> None:
    lines = str(explained("conv2d")).splitlines()
    rows = dict(line.split("  ", 1) for line in lines if "  " in line.strip())
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    assert rows["operation"] == "conv2d (fprop)"
    assert rows["x (N C D H W)"] == "2x4x9x9 contiguous"
    assert rows["padding lo+hi"] == "1+2, 0+3 (zeros)"
    assert rows["epilogue"] == "bias, relu"
    assert rows["array"] == "numpy on cpu"
    flops, moved = 2 * 2 * 6 * 10 * 10 * 36, 4 * (X.size + W.size + 2 * 6 * 100 + 6)
    assert rows["FLOPs"] == f"{flops:,}"
    assert rows["bytes at least"] == f"{moved:,} ({flops / moved:.2f} FLOP per byte)"
    assert lines[0].split() == ["runs", "on", "numpy.conv.fprop.im2col"]
    assert lines[-1].startswith(lines[0] + ", estimate ") and lines[-1].endswith(" us (guess)")
    able, refused = lines.index("solvers, best first:"), lines.index("not here:")
    assert refused == able + 2 and "1. numpy.conv.fprop.im2col  estimate " in lines[able + 1]
    triton, *others = lines[refused + 1 : refused + 4]
    assert triton.startswith(
        "  triton.conv.fprop.implicit_gemm, triton.conv.fprop.hopper, triton.conv.depthwise.march, "
    )
    assert triton.endswith(": arrays are on cpu, kernels run on cuda (on cpu with TRITON_INTERPRET=1)")
    assert others == [
        "  cupy.conv.fprop.tiled, cupy.conv.fprop.depthwise: arrays are on cpu, kernels run on cuda",
        "  numpy.conv.fprop.taps: needs 1 input channel per group, the problem has 4",
    ]


@pytest.mark.parametrize("changes", [{}, CUDA, {"device": "meta", "array": "torch"}], ids=["cpu", "cuda", "meta"])
@pytest.mark.parametrize("call", CALLS)
def test_fits_a_screen_and_keeps_to_the_pass(call: str, changes: dict[str, str], h200: Any) -> None:
    found = explained(call, **changes)
    text = str(found)
    lines = text.splitlines()
    assert len(lines) <= 30
    assert lines[0].startswith("runs on ") and lines[-1].startswith("runs on ")
    assert lines[-1].startswith(lines[0] if found.plan else "runs on")
    assert found.plan is not None or "nothing: no solver can run this call: arrays are on meta" in lines[0]
    concerned = {c.solver.id for c in found.candidates if found.concerns(c)}
    for candidate in found.candidates:
        assert (candidate.solver.id in text) == (candidate.solver.id in concerned)
        assert candidate.reason is not None or candidate.solver.id in concerned, "what can run is of the pass"
        assert candidate.reason is None or text.count(candidate.reason + "\n") <= 1, "one reason stands once"
    assert ("of the roofline" in text) == (changes == CUDA)


def test_a_solver_serves_what_it_takes() -> None:
    """`serves` is what `why_not` asks first, and every solver serves some call."""
    problems = [gpuconv.explain(call).problem for call in CALLS.values()]
    problems.append(SeparableProblem("depthwise_separable_conv2d", problems[0], problems[0]))
    deform = problems[list(CALLS).index("deform_conv2d")]
    problems += [replace(deform, conv=replace(deform.conv, kind=kind)) for kind in ("dgrad", "wgrad")]
    for backend in dispatch.backends().values():
        for solver in backend.solvers():
            served = [problem for problem in problems if solver.serves(problem)]
            assert served, solver.id
            for problem in problems:
                assert solver.serves(problem) or solver.why_not(problem) is not None
                _, family, kind, *_ = solver.id.split(".")
                if solver.serves(problem):
                    assert (family == "conv") != isinstance(problem, PoolProblem)
                    assert family == "conv" or kind in problem.pool


def test_names_the_share_of_the_roofline(h200: Any) -> None:
    found = explained("conv2d", **CUDA)
    data = found.to_json()
    first = data["solvers"][0]
    assert first["share"] == pytest.approx(data["roofline"]["microseconds"] / first["microseconds"])
    assert f"(model), {first['share']:.0%} of the roofline" in str(found).splitlines()[-1]


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(0.04, "0.0 us"), (983.66, "983.7 us"), (1000, "1.00 ms"), (1967.4, "1.97 ms"), (2.5e6, "2.50 s")],
)
def test_times_have_the_unit_that_fits(microseconds: float, text: str) -> None:
    assert _time(microseconds) == text


def test_wraps_under_the_text(h200: Any) -> None:
    found = explained("max_pool2d", **CUDA)
    whole, narrow = str(found), found.render(width=60)
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, whole.splitlines()))
    assert narrow.split() == whole.split()
    assert all(line[0] != " " or line.startswith("  ") for line in narrow.splitlines())


@pytest.mark.parametrize("changes", [{}, CUDA, {"device": "meta", "array": "torch"}], ids=["cpu", "cuda", "meta"])
@pytest.mark.parametrize("call", CALLS)
def test_json_holds_everything(call: str, changes: dict[str, str], h200: Any) -> None:
    found = explained(call, **changes)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert problem_from_json(data["problem"]) == found.problem
    assert (data["runs_on"], data["flops"]) == (found.solver, found.problem.flops)
    assert data["bytes_at_least"] == found.problem.min_bytes
    assert (data["roofline"] is not None) == (changes == CUDA)
    assert [each["id"] for each in data["solvers"]] == [candidate.solver.id for candidate in found.candidates]
    for each, candidate in zip(data["solvers"], found.candidates, strict=True):
        assert (each["reason"], each["microseconds"]) == (candidate.reason, candidate.estimate)
        assert each["of_this_operation"] == found.concerns(candidate)
    if found.plan is not None:
        assert data["workspace"] == found.plan.workspace and data["config"].keys() == found.plan.config.keys()


# refusals


def check_form(lines: list[str], problem: Problem, why: str) -> None:
    """Check the form of every refusal: why in the first line, under 12 in all, each solver of the pass once."""
    assert lines[0].startswith(f"{problem.op}: ") and why in lines[0]
    assert lines[-1] == "gpuconv.explain says more, without running the call"
    assert len(lines) < 12
    listed = [id for line in lines[2:-1] for id in line.strip().partition(": ")[0].split(", ")]
    assert len(listed) == len(set(listed))
    served = [s.id for b in dispatch.backends().values() for s in b.solvers() if s.serves(problem)]
    assert sorted(listed) == sorted(served)


@pytest.mark.parametrize("call", CALLS)
def test_without_triton_and_cupy_it_says_what_to_install(call: str, alone: None) -> None:
    problem = placed(gpuconv.explain(CALLS[call]).problem, **CUDA)
    lines = refusal(problem)
    check_form(lines, problem, "torch tensors on cuda:0: triton is not installed (pip install triton)")
    numpy = [c.solver.id for c in explained(call).candidates if c.backend == "numpy" and c.reason is None]
    assert lines[0].partition("; on the CPU ")[2].removesuffix(" runs it") in numpy
    assert "host memory" not in lines[0], "what it takes to run on the CPU is no reason on a GPU"


def test_the_sentence_says_why_and_what_to_do(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = gpuconv.explain(CALLS["conv2d"]).problem
    no_gpu = "arrays are on cpu, kernels run on cuda (on cpu with TRITON_INTERPRET=1)"
    runs = "without it numpy.conv.fprop.im2col runs"
    said = {
        "triton": f"conv2d: backend='triton' cannot run this call: {no_gpu}; {runs}",
        "numpy.conv.fprop.taps": "conv2d: backend='numpy.conv.fprop.taps' cannot run this call: "
        f"needs 1 input channel per group, the problem has 4; {runs}",
        "numpy.pool.max.fprop": "conv2d: backend='numpy.pool.max.fprop' cannot run this call: "
        f"pools only, this is a convolution (conv2d); {runs}",
        "numpy.conv.fprop.im2cl": "conv2d: backend='numpy.conv.fprop.im2cl' names no solver; "
        "did you mean 'numpy.conv.fprop.im2col' or 'numpy.conv.fprop.taps'?",
        "numpy.fastest": "conv2d: backend='numpy.fastest' names no solver; those of this operation are below",
    }
    for backend, sentence in said.items():
        lines = refusal(conv, backend)
        check_form(lines, conv, "")
        assert lines[0] == sentence
    with gpuconv.use_backend("triton"):
        assert refusal(conv, "triton")[0].startswith("conv2d: use_backend('triton') cannot run this call: ")
    monkeypatch.setenv("GPUCONV_BACKEND", "triton")
    assert refusal(conv, "triton")[0].startswith("conv2d: GPUCONV_BACKEND=triton cannot run this call: ")


def test_a_backend_without_a_solver_of_the_operation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    others = tuple(solver for solver in cupy_pool.SOLVERS if "fold" not in solver.id)
    monkeypatch.setattr(cupy_pool, "SOLVERS", others)
    problem = replace(gpuconv.explain(CALLS["unfold"]).problem, **CUDA)
    lines = refusal(problem, "cupy")
    check_form(lines, problem, "backend='cupy' cannot run this call: that backend has no solver of unfold")


def test_an_element_type_that_kernels_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_backend, "_missing_package", lambda: None)
    monkeypatch.setattr(cupy_backend, "_missing_gpu", lambda: None)
    problem = replace(gpuconv.explain(CALLS["conv2d"]).problem, dtype="int64", **CUDA)
    lines = refusal(problem)
    check_form(lines, problem, "computes float16, bfloat16, float32, float64, not int64; on the CPU numpy.")
    assert lines[1] == "solvers of conv2d (fprop), int64, of torch tensors on cuda:0:"


def test_elsewhere_than_on_a_gpu_or_the_cpu() -> None:
    problem = replace(gpuconv.explain(CALLS["conv2d"]).problem, device="meta", array="torch")
    check_form(refusal(problem), problem, "arrays are on meta; move them to the CPU or a CUDA device")


def test_the_interpreter_takes_no_tensors_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_missing_package", lambda: None)
    monkeypatch.setattr(triton_backend, "interpreting", lambda: True)
    problem = replace(gpuconv.explain(CALLS["conv2d"]).problem, **CUDA)
    check_form(refusal(problem, "triton"), problem, "TRITON_INTERPRET is set: kernels run on CPU tensors only")


def test_a_limit_of_the_workspace_comes_first() -> None:
    """Whatever else is true of the other solvers: the user can raise the limit."""
    conv = gpuconv.explain(CALLS["conv2d"]).problem
    found = [
        Candidate(solver, name, why, None)
        for name, backend in dispatch.backends().items()
        for solver in backend.solvers()
        for why in ["needs 9 B of workspace, the limit is 8 B" if solver.id.endswith("im2col") else "no"]
    ]
    lines = str(dispatch.selection._no_solver(conv, None, found)).splitlines()
    check_form(lines, conv, "numpy.conv.fprop.im2col needs 9 B of workspace, the limit is 8 B; raise it: GPUCONV_WORK")
