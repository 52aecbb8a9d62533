"""What the report does about errors on the device, whichever library words them, and about lists that break off."""

from __future__ import annotations

import pytest
import torch
from report_runs import item, only_stages, options_for, records, stage, work

from bench import measure, parity_calls
from bench.parity import conv_problem
from bench.timing import HostClock
from bench.tuning import tuning_items
from bench.worker import CONTEXT_LOST, Worker
from gpuconv.dispatch import backends, solver_of
from gpuconv.tuning import search as tuning
from gpuconv.tuning.trial import context_lost, reason_of

WORDS = (
    "Triton Error [CUDA]: misaligned address",
    "Triton Error [CUDA]: unspecified launch failure",
    "CUDA_ERROR_MISALIGNED_ADDRESS: misaligned address",
    "cudaErrorIllegalAddress: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph.",
    "CUDA driver error: an illegal instruction was encountered",
    "cuLaunchKernel failed with error 719",
)
"""Of Triton, CuPy, the runtime, torch, cuDNN and the driver."""


class Context:
    """A CUDA context that can die, and what asks for it."""

    def __init__(self) -> None:
        self.dead: str | None = None
        self.pending: list[str] = []
        self.synchronised = 0

    def synchronize(self) -> None:
        self.synchronised += 1
        if self.pending:
            self.dead = self.pending.pop()
        if self.dead:
            raise RuntimeError(self.dead)

    def fail(self, words: str, dies: bool) -> None:
        self.dead = words if dies else None
        raise RuntimeError(words)


@pytest.fixture
def context(monkeypatch):
    found = Context()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    return found


@pytest.mark.parametrize("words", WORDS)
def test_an_error_is_fatal_where_the_context_is_dead_whatever_the_words(monkeypatch, tmp_path, context, words):
    options, done = options_for(tmp_path, "--stage", "parity"), []
    items = [item("one", lambda: context.fail(words, True)), item("two", lambda: done.append(2) or {"status": "ok"})]
    only_stages(monkeypatch, stage(lambda _: items))
    assert work(options) == CONTEXT_LOST and not done
    (record,) = records(options)
    assert (record["key"], record["status"]) == ("one", "crashed") and words in record["why"]
    context.dead = None  # the next worker has a context of its own
    assert work(options) == 0 and done == [2]
    assert [record["key"] for record in records(options)] == ["one", "two"]


@pytest.mark.parametrize("words", WORDS)
def test_an_error_is_a_record_where_the_context_lives_whatever_the_words(monkeypatch, tmp_path, context, words):
    options = options_for(tmp_path, "--stage", "parity")
    items = [item("one", lambda: context.fail(words, False)), item("two", lambda: {"status": "ok"})]
    only_stages(monkeypatch, stage(lambda _: items))
    assert work(options) == 0
    assert [(record["key"], record["status"]) for record in records(options)] == [("one", "error"), ("two", "ok")]


def test_an_error_left_behind_by_an_earlier_call_is_not_the_end(monkeypatch):
    said = ["CUDA error: invalid configuration argument"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said and (_ for _ in ()).throw(RuntimeError(said.pop())))
    assert context_lost() is None and not said


def test_without_a_context_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("CUDA must not be initialised"))
    assert context_lost() is None


@pytest.mark.parametrize("silent", (False, True))
def test_what_fails_later_is_charged_to_the_item_that_launched_it(monkeypatch, tmp_path, context, silent):
    """Of a silent stage, too, which looks at no result."""
    options = options_for(tmp_path, "--stage", "compile")

    def launch():
        context.pending.append("CUDA error: an illegal memory access was encountered")
        return {"status": "ok"}

    innocent = item("innocent", lambda: pytest.fail("must not run in a dead context"))
    only_stages(monkeypatch, stage(lambda _: [item("guilty", launch), innocent], "compile", silent=silent))
    assert work(options) == CONTEXT_LOST
    (record,) = records(options)
    assert (record["key"], record["status"]) == ("guilty", "crashed") and "illegal memory" in record["why"]


@pytest.mark.parametrize("words", WORDS)
def test_a_measurement_ends_where_the_context_is_dead(monkeypatch, context, words):
    problem = conv_problem((1, 8, 5, 5), (8, 8, 3, 3), number="float32", device="cpu")
    contender = measure.CONTENDERS["torch_contiguous"]
    names = ["torch_contiguous", "flag_gems"]
    for dies in (False, True):
        context.dead = None
        monkeypatch.setattr(contender, "call", lambda *_, dies=dies: context.fail(words, dies), raising=False)
        if dies:
            with pytest.raises(RuntimeError):
                list(measure.measure(problem, names, HostClock()))
        else:
            first, _ = measure.measure(problem, names, HostClock())
            assert first["status"] == "error" and words in first["why"]


@pytest.mark.parametrize("words", WORDS)
def test_tuning_ends_where_the_context_is_dead(monkeypatch, context, words):
    """Else every problem that follows would be recorded as one that cannot be timed."""
    problem = conv_problem((1, 64, 8, 8), (64, 64, 3, 3), device="cpu")
    solver = solver_of("triton.conv.fprop.implicit_gemm")
    option = tuning.Option(solver, solver.configs(problem)[0], True, 1.0)

    def timer(plan, launch):
        context.fail(words, dies)

    timer.launches = False
    dies = False
    (timing,) = tuning._timings(problem, [option], timer, lambda: False)
    assert timing.microseconds is None and words in timing.reason
    dies = True
    with pytest.raises(RuntimeError, match=r".*"):
        list(tuning._timings(problem, [option], timer, lambda: False))


def test_reasons_keep_their_end():
    source = "at 100:12:\n" + "    inside_t = (t >= 0) & (t < T)\n" * 30
    text = reason_of(AssertionError(f"{source}Loop-carried variable has_tap has initial type <['16', '1'], int1>"))
    assert text.startswith("AssertionError: at 100:12:") and text.endswith("has initial type <['16', '1'], int1>")
    assert "\n" not in text and len(text) <= 510
    assert reason_of(ValueError("short")) == "ValueError: short" and reason_of(ValueError()) == "ValueError:"


def test_items_are_listed_as_they_are_done(monkeypatch, tmp_path):
    said = []

    def items(_):
        for number in range(3):
            said.append(f"listed {number}")
            yield item(str(number), lambda number=number: said.append(f"done {number}") or {})

    options = options_for(tmp_path, "--stage", "parity")
    only_stages(monkeypatch, stage(items))
    assert work(options) == 0
    assert said == [f"{what} {number}" for number in range(3) for what in ("listed", "done")]


def test_a_list_that_breaks_off_is_a_record_and_the_rest_goes_on(monkeypatch, tmp_path):
    """In every worker's part, exactly one of which has it in hand."""

    def problems(device, tiny):
        yield "one", lambda: {"status": "ok"}
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("bench.stages.parity_items", problems)
    monkeypatch.setattr("bench.stages.parity_calls", lambda device, few: iter([("two", lambda: {"status": "ok"})]))
    for part in ("0/2", "1/2"):
        options = options_for(tmp_path, "--stage", "parity")
        options.part = part
        assert work(options) == 0
    found = {record["key"]: record["status"] for record in records(options)}
    assert found == {"one": "ok", "two": "ok", "gpuconv: the list of problems ends here": "error"}


def test_nothing_is_launched_while_calls_are_listed(monkeypatch):
    launched = []
    for kind in {type(solver) for backend in backends().values() for solver in backend.solvers()}:
        monkeypatch.setattr(kind, "run", lambda *_: launched.append(1))
    listed = [key for key, _ in parity_calls.parity_calls("cpu", few=True)]
    assert len(listed) > 4 and not launched


def test_compiling_ahead_leaves_out_what_is_timed_already(tmp_path, monkeypatch):
    options = options_for(tmp_path, "--stage", "compile", "benchmark")
    ran = []
    items = [
        item(key, lambda key=key: ran.append(key) or {}, serves=("benchmark", f"gpuconv | {key}")) for key in ("a", "b")
    ]
    only_stages(monkeypatch, stage(lambda _: items, "compile", silent=True))
    worker = Worker(options, 0.0)
    worker.store.add("benchmark", "gpuconv | a", status="ok")
    worker.store.close()
    assert work(options) == 0 and ran == ["b"]


def test_tuning_lists_what_the_kinds_ask_for(tmp_path):
    options = options_for(tmp_path, "--stage", "tune", "--kind", "dgrad")
    worker = Worker(options, 0.0)
    assert [key.split()[1] for key, _ in tuning_items(worker.context)] == ["dgrad"]
    worker.store.close()
