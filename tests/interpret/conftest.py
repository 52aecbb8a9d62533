"""The interpret lane runs in a process of its own with TRITON_INTERPRET=1; elsewhere it collects nothing.

The gate runs each case on one of the two releases of Triton, and of the long lists of cases and mutants a part alone.
``GPUCONV_TEST_FULL=1`` (``make test-full``) runs all of them on both, of the long lists one half on either Triton, and
of operands' layouts an eighth; ``GPUCONV_TEST_BOTH=1`` beside it runs everything on both.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from gate import shares

from gpuconv import dispatch
from gpuconv.dispatch.plan_cache import CACHE

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    from quick import quicken
    from specialisations import FOLDER, write_launches
    from triton.runtime.interpreter import InterpretedFunction

    quicken()
    if FOLDER in os.environ:
        write_launches(InterpretedFunction, Path(os.environ[FOLDER]))

PARTS = {
    "test_matches_reference": 64,
    "test_keys_match_the_reference": 25,
    "test_mutant_is_noticed": 40,
    "test_gradcheck": 15,
    "test_gradcheck_of_padding_modes": 15,
    "test_gradcheck_in_full": 15,
    "test_dgrad_multiplies_only_the_taps_of_each_phase": 4,
    "test_opinfo": 6,
    "test_what_is_not_finite_stays_where_it_is": 60,
    "test_what_is_not_finite_stays_in_columns_and_gradients": 40,
    "test_repeated_calls_of_our_kernels": 13,
    "test_probes_pass_on_the_real_kernels": 12,
    "test_small_integers_are_exact": 6,
    "test_wgrad_states_and_bounds_its_workspace": 4,
    "test_matches_the_two_steps": 12,
    "test_what_is_not_finite_is_as_in_the_two_steps": 9,
    "test_conv_depthwise::test_matches_reference": 64,
    "test_conv_depthwise::test_what_is_not_finite_stays_where_it_is": 96,
    "test_depthwise_mutations::test_probes_pass_on_the_real_kernels": 17,
    "test_conv_scaled::test_matches_reference": 16,
    "test_conv_scaled::test_mutant_is_noticed": 6,
    "test_steps_round_as_torchs": 4,
    "test_flat_steps_match_the_reference": 4,
    "test_conv_deform::test_matches_reference": 40,
    "test_conv_deform::test_mutant_is_noticed": 29,
}
"""Into how many parts a list of cases is cut, of which either Triton runs a half in the gate; of one file where it is
named."""


SHARES = dict.fromkeys(PARTS, 2) | {"test_layout": 8}
"""Into how many parts lists are cut of which the full run takes one on either Triton, not the same."""

OLDEST = "3.6."
ON_OLDEST_ALONE = {"test_probes_pass_on_the_real_kernel", "test_conv_opinfo_triton"}
"""Tests and files that the gate runs on the oldest Triton alone, which is the one that comes with the oldest torch.

The launches of OpInfo's convolutions together are held against the list of kernels, so one Triton runs all of them.
"""

IN_FULL_ALONE = {
    "test_killed_and_resumed",
    "test_offsets_beyond_32_bits",
    "test_sums_beyond_int32_wrap_around",
    "test_conv_deform::test_probes_pass_on_the_real_kernels",
    "test_conv_deform::test_mutant_is_noticed",
}
"""What takes the gate too long, three reports one after the other, or asks too much: files of 24 GB, if of holes."""


def pytest_collection_modifyitems(config, items):
    for item in items:
        item.add_marker(pytest.mark.interpret)
    if not items:
        return
    import triton

    oldest, full = triton.__version__.startswith(OLDEST), os.environ.get("GPUCONV_TEST_FULL") == "1"
    if full and os.environ.get("GPUCONV_TEST_BOTH") == "1":
        return
    left_out = set()
    for item, place, number in shares(items):
        parts = SHARES.get(item.originalname, 1) if full else 1
        if not full:
            usual = PARTS.get(item.originalname, 1)
            parts = min(PARTS.get(f"{item.path.stem}::{item.originalname}", usual), number)
            parts *= 2
        in_part = place % parts == oldest % parts
        names = {item.originalname, item.path.stem, f"{item.path.stem}::{item.originalname}"}
        if not full and names & (ON_OLDEST_ALONE | IN_FULL_ALONE):
            in_part = oldest and not names & IN_FULL_ALONE
        if not in_part:
            left_out.add(item)
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))


def pytest_configure(config):
    if os.environ.get("TRITON_INTERPRET") == "1":
        config.pluginmanager.register(KernelsLaunched(), "gpuconv-kernels-launched")


class KernelsLaunched:
    """Gathers what the OpInfo tests launched, in every worker, and fails a complete run that left out a kernel."""

    def __init__(self):
        self.launches, self.convs = Counter(), set()

    def pytest_runtest_logreport(self, report):
        properties = dict(report.user_properties)
        if report.when == "teardown" and "launches" in properties:
            self.convs.add(properties.get("conv"))
            for kind, kernel, count in json.loads(properties["launches"]):
                self.launches[kind, kernel] += count

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workerinput") or not self.complete():
            return
        from launches import unlaunched

        if unlaunched(self.launches) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.launches:
            from launches import table

            terminalreporter.section("kernels launched by OpInfo's samples")
            for line in table(self.launches):
                terminalreporter.line(line)

    def complete(self):
        """Tell whether all six convolutions ran: a selection of tests may leave kernels out."""
        from conv_samples import NAMES

        return self.convs >= set(NAMES)


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    """Start each test without plans of others: some replace what plans are made with."""
    CACHE.clear()
    dispatch.selection._plan.cache_clear()
