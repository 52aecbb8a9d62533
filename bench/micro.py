"""Microbenchmarks: the ceilings of the machine, and the questions about kernels that only a GPU can answer.

Each is a function of the clock that returns the fields of one record. What needs a kernel that does not exist yet is
listed in `UNANSWERED`, so that a report says "not run" instead of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from gpuconv.arrays import TORCH
from gpuconv.backends.base import Plan
from gpuconv.backends.triton.backend import BACKEND as TRITON
from gpuconv.dispatch import select, solver_of
from gpuconv.problem import Call, ConvProblem

from .calls import make_tensors, operand_bytes
from .cases import all_cases, problem_key
from .contenders import plain, settings
from .parity import conv_problem
from .referee import poisoned, verdict
from .timing import Clock

__all__ = ["UNANSWERED", "ceiling_items", "host_items", "micro_items", "narrow_questions", "sweep", "variants"]

Item = tuple[str, Callable[[], dict[str, Any]]]

UNANSWERED = {
    "swapped operands against naive, through TMA": "no kernel that TMA feeds has channels as rows of its products",
    "overlapping strides in tensor maps": "no kernel has maps of overlapping strides",
    "cp.async.ca against .cg": "the compiler ignores .ca for 16-byte copies, and no kernel rewrites its PTX",
}


def copy_bandwidth(clock: Clock) -> dict[str, Any]:
    """Bytes per microsecond of a device-to-device copy, reads and writes counted."""
    size = (1 << 30) if clock.device == "cuda" else (1 << 20)
    source = torch.ones(size, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    timing = clock.kernel([lambda: target.copy_(source)] * 4, 2 * size)
    return {"per_us": 2 * size / timing.p50, "unit": "bytes", "timing": timing.record()}


def gemm_rate(clock: Clock, number: str) -> dict[str, Any]:
    """FLOP per microsecond of a large matrix product through torch, on random data."""
    side = (8192 if number not in ("float32", "float64") else 4096) if clock.device == "cuda" else 64
    dtype = torch.float32 if number == "tf32" else getattr(torch, number)
    a, b = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
    module, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    module.fp32_precision = "tf32" if number == "tf32" else "ieee"
    try:
        timing = clock.kernel([lambda: a @ b] * 4, 3 * a.nbytes)
    finally:
        module.fp32_precision = before
    return {"per_us": 2 * side**3 / timing.p50, "unit": "FLOP", "side": side, "timing": timing.record()}


def ceiling_items(clock: Clock) -> Iterator[Item]:
    """Yield what fractions of rooflines are computed from."""
    yield "copy", partial(copy_bandwidth, clock)
    for number in ("float16", "bfloat16", "tf32", "float32", "float64"):
        yield f"gemm {number}", partial(gemm_rate, clock, number)


def l2_bandwidth(clock: Clock, megabytes: int, modifier: str) -> dict[str, Any]:
    """Bytes per microsecond that programs on every multiprocessor read from a buffer that fits in L2."""
    from .micro_kernels import _reread_kernel as kernel

    cuda, block = clock.device == "cuda", 4096
    programs = 2 * torch.cuda.get_device_properties().multi_processor_count if cuda else 2
    blocks = (megabytes << 20) // (4 * block) if cuda else 2
    x = torch.randn(blocks * block, device=clock.device)
    out = torch.empty(programs * block, device=clock.device)
    arguments = (x, out, blocks)
    timing = clock.kernel([lambda: kernel[(programs,)](*arguments, modifier, block, num_warps=8)] * 2, x.nbytes)
    return {"per_us": programs * x.nbytes / timing.p50, "unit": "bytes", "timing": timing.record()}


def shifted_reads(clock: Clock, modifier: str) -> dict[str, Any]:
    """Bytes per microsecond of nine overlapping loads per element: what L1 gives where it is used."""
    from .micro_kernels import _taps_kernel as kernel

    block, taps = 1024, 9
    columns = (64 << 20) if clock.device == "cuda" else 2 * block
    x = torch.randn(columns + taps - 1, device=clock.device)
    out = torch.empty(columns, device=clock.device)
    call = lambda: kernel[(-(-columns // block),)](x, out, columns, modifier, taps, block)  # noqa: E731
    timing = clock.kernel([call] * 2, x.nbytes + out.nbytes)
    return {"per_us": taps * 4 * columns / timing.p50, "unit": "bytes", "timing": timing.record()}


def launch_cost(clock: Clock) -> dict[str, Any]:
    """Microseconds of an empty kernel: in a graph, in a row of eager launches, and on the host."""
    from .micro_kernels import _null_kernel as kernel

    out = torch.empty(1, device=clock.device)
    call = lambda: kernel[(1,)](out)  # noqa: E731
    in_graph, eager, host = clock.kernel([call] * 64, 1), clock.eager([call] * 64), clock.host(call)
    return {"graph": in_graph.record(), "eager": eager.record(), "host": host.record()}


def _plans(device: str) -> Iterator[tuple[ConvProblem, Plan]]:
    """Yield convolutions of the workloads and their plans, or tiny ones on the CPU."""
    if device == "cpu":
        from .dry import tiny_convolutions

        for problem in tiny_convolutions():
            yield problem, select(problem, "triton")
        return
    for case in all_cases(numbers=("float16", "bfloat16", "float32")):
        if isinstance(case.problem, ConvProblem):
            yield case.problem, select(case.problem, "triton")


def variants(plan: Plan) -> Iterator[tuple[str, str, Plan]]:
    """Yield (question, answer, plan) for the configurations that a sweep of `plan` times, its own among them."""
    config = plan.config
    if "form" in config:
        yield from _forms(plan)
        return
    bounded = {name: value for name, value in config.items() if name != "maxnreg"}
    if "maxnreg" in config:
        yield "maxnreg", "none", replace(plan, config=bounded)
        yield "maxnreg", str(config["maxnreg"]), plan
    if config.get("splits", 1) > 1:
        for splits in sorted({1, 2, config["splits"] // 2, config["splits"], 2 * config["splits"]} - {0}):
            yield "splits", str(splits), _with_splits(plan, splits)
    for warps in (4, 8):
        for stages in (2, 3, 4):
            changed = config | {"num_warps": warps, "num_stages": stages}
            yield "warps x stages", f"{warps} x {stages}", replace(plan, config=changed)


def _forms(plan: Plan) -> Iterator[tuple[str, str, Plan]]:
    """Yield the forms of a plan of the Hopper kernels, its own first and then those with clusters, each in one config.

    What a cluster gains, and whether it is right under load and with an odd number of tiles, is asked first of all.
    """
    found = {plan.config["form"]: plan}
    for config in plan.solver.configs(plan.problem):
        found.setdefault(config["form"], plan.solver.bind(plan.problem, config))
    first, *others = found
    yield "form", first, plan
    if plan.config.get("stream"):  # what equal shares of all steps gain
        whole = {name: value for name, value in plan.config.items() if name != "stream"}
        yield "form", f"{first}, whole tiles", plan.solver.bind(plan.problem, whole)
    for form in sorted(others, key=lambda form: "2 x" not in form):
        yield "form", form, found[form]


def _with_splits(plan: Plan, splits: int) -> Plan:
    """Return `plan` with another number of splits, none of which is empty, and the workspace for it."""
    problem, config = plan.problem, plan.config
    if splits == config["splits"] or not isinstance(problem, ConvProblem):
        return plan
    per_split = plan.workspace // config["splits"]
    if problem.kind == "wgrad":
        return replace(plan, config=config | {"splits": splits}, workspace=per_split * splits if splits > 1 else 0)
    return replace(plan, config=config | {"splits": splits})


def sweep(clock: Clock, problem: ConvProblem, question: str, answer: str, plan: Plan) -> dict[str, Any]:
    """Judge and time one configuration of one problem."""

    def call_on(seed: int) -> Callable[[], Any]:
        call = Call(problem, _arrays(problem, make_tensors(problem, clock.device, seed)), TORCH)
        return lambda: plan.run(call)

    tensors = make_tensors(problem, clock.device)
    with settings(problem, search=False), poisoned():
        result = plan.run(Call(problem, _arrays(problem, tensors), TORCH))
    with settings(None, search=False):
        judged = verdict(problem, tensors, result)
    fields = {"question": question, "answer": answer, "solver": plan.solver.id, "gate": dict(judged)}
    fields |= {"problem": problem_key(problem), "config": plain(plan.config)}
    if not judged.ok:
        return fields | {"status": "wrong"}
    size = operand_bytes(problem)
    calls = [call_on(seed) for seed in range(clock.sets(size))]
    return fields | {"status": "ok", "kernel": clock.kernel(calls, size).record()}


def _arrays(problem: ConvProblem, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the arrays of a call by every name that a solver may ask for."""
    return {name: None for name in ("bias", "scale", "shift", "residual")} | dict(tensors)


_Question = tuple[str, ConvProblem, list[tuple[str, Plan]]]


def narrow_questions(device: str) -> Iterator[_Question]:
    """Yield what compiled code cannot tell of layers with few channels per group: (question, problem, configurations).

    Whether to load the next row ahead (registers against latency), pixels of a tile (occupancy against reuse), and
    which solver: by fused multiplies, or by the tensor cores with products that count for nothing.
    """
    sizes = (1, 16, 3, 4) if device == "cpu" else (32, 192, 56, 56)
    c = sizes[1]

    def described(window: int, groups: int) -> ConvProblem:
        shape = (c, c // groups, window, window)
        return conv_problem(sizes, shape, "fprop", "bfloat16", padding=window // 2, groups=groups, device=device)

    small, large, grouped = described(3, c), described(7, c), described(3, c // 8)
    ahead = solver_of("triton.conv.depthwise.march").plan(small)
    yield (
        "march: the next row ahead",
        small,
        [(str(value), replace(ahead, config=ahead.config | {"AHEAD": value})) for value in (0, 1)],
    )
    solvers = [s for s in TRITON.solvers() if s.serves(large) and not (s.why_not(large) or TRITON.lacks(s, large))]
    yield "7x7 depthwise: solver", large, [(solver.id, solver.plan(large)) for solver in solvers]
    rows = solver_of("triton.conv.grouped.rows")
    by_size = {config["BM"]: config for config in reversed(rows.configs(grouped))}
    yield "rows: pixels of a tile", grouped, [(str(bm), rows.bind(grouped, by_size[bm])) for bm in sorted(by_size)]


def _questions(device: str, most_problems: int) -> Iterator[_Question]:
    """Yield (question, problem, configurations): one problem per tile with a bound, else a few of each pass."""
    asked: dict[tuple[Any, ...], int] = {}
    for place, (problem, plan) in enumerate(_plans(device)):
        tile = tuple(plan.config.get(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps"))
        answers: dict[str, list[tuple[str, Plan]]] = {}
        for question, answer, changed in variants(plan):
            if device == "cpu" and place and question == "warps x stages":
                continue  # the interpreter has neither
            answers.setdefault(question, []).append((answer, changed))
        for question, configurations in answers.items():
            group = (problem.kind, question, *(tile if question == "maxnreg" else ()))
            if asked.get(group, 0) < (1 if question == "maxnreg" else most_problems):
                asked[group] = asked.get(group, 0) + 1
                yield question, problem, configurations


def micro_items(clock: Clock, most_problems: int = 6) -> Iterator[Item]:
    """Yield the microbenchmarks, those that decide most first."""
    yield "launch cost", partial(launch_cost, clock)
    for megabytes in (8, 16, 24, 32):
        yield f"L2 bandwidth, {megabytes} MiB", partial(l2_bandwidth, clock, megabytes, ".cg")
    for modifier in (".ca", ".cg"):
        yield f"nine shifted loads, {modifier}", partial(shifted_reads, clock, modifier)
    later: list[Item] = []
    for question, problem, answers in chain(narrow_questions(clock.device), _questions(clock.device, most_problems)):
        for answer, plan in answers:
            key = f"{question}: {problem_key(problem)} = {answer}"
            item = (key, partial(sweep, clock, problem, question, answer, plan))
            if question == "warps x stages":
                later.append(item)
            else:
                yield item
    yield from later
    for question, reason in UNANSWERED.items():
        yield question, partial(dict, status="not run", why=reason)


def host_items(clock: Clock) -> Iterator[Item]:
    """Yield the host time of calls whose work on the device is small."""
    import gpuconv

    def timed(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
        x, w = (torch.randn(shape, device=clock.device) for shape in ((1, 16, 4, 4), (16, 16, 3, 3)))
        return {"host": clock.host(lambda: function(x, w, padding=1, **options)).record()}

    ours = {"backend": "triton"} if clock.device == "cpu" else {}
    yield "gpuconv.conv2d", partial(timed, gpuconv.conv2d, ours)
    yield "torch.nn.functional.conv2d", partial(timed, torch.nn.functional.conv2d, {})
