"""What the interpret lane launched goes through the compiler's front end, which the interpreter does not have.

``GPUCONV_LAUNCHES`` names the folder that it wrote. The gate builds what its part of the interpreted tests launched, of
each kernel :data:`MOST` of that, evenly spread; ``GPUCONV_TEST_FULL=1`` everything.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

FOLDER = "GPUCONV_LAUNCHES"
TEST = "test_front_end_takes_what_was_interpreted"

MOST = 48
"""Launches of a kernel that the gate builds at most."""


def _missing():
    """Return why there is nothing to build, or None."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "the interpreter has no front end"
    if FOLDER not in os.environ:
        return f"{FOLDER} names no folder of launches"
    from specialisations import collected, sources

    _, heads = collected(Path(os.environ[FOLDER]))
    return None if heads == {sources()} else f"the launches in {os.environ[FOLDER]} are not of these kernels"


def pytest_generate_tests(metafunc):
    if "launch" not in metafunc.fixturenames:
        return
    missing = _missing()
    if missing:
        metafunc.parametrize("launch", [pytest.param("", marks=pytest.mark.skip(reason=f"not run: {missing}"))])
        return
    from specialisations import collected

    launches, _ = collected(Path(os.environ[FOLDER]))
    launches = _taken(launches)
    metafunc.parametrize("launch", launches, ids=[_name(place, launch) for place, launch in enumerate(launches)])


def _taken(launches):
    """Return the launches that are built: all, or in the gate a part of those of each kernel."""
    if os.environ.get("GPUCONV_TEST_FULL") == "1":
        return launches
    of = {}
    for launch in launches:
        of.setdefault(json.loads(launch)["kernel"], []).append(launch)
    return [launch for some in of.values() for launch in some[:: -(-len(some) // MOST)]]


def _name(place, launch):
    return f"{json.loads(launch)['kernel'].rpartition(':')[2]}-{place}"


def pytest_configure(config):
    config.pluginmanager.register(Specialisations(), "gpuconv-specialisations")


class Specialisations:
    """Counts the launches that were built, by kernel, in every worker."""

    def __init__(self):
        self.built, self.refused = Counter(), Counter()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and f"::{TEST}[" in report.nodeid:
            kernel = report.nodeid.partition("[")[2].rpartition("-")[0]
            (self.built if report.passed else self.refused)[kernel] += 1

    def pytest_terminal_summary(self, terminalreporter):
        kernels = sorted(self.built | self.refused)
        if not kernels:
            return
        import triton

        terminalreporter.section(f"specialisations built by triton {triton.__version__}'s front end")
        for kernel in kernels:
            count, refused = self.built[kernel] + self.refused[kernel], self.refused[kernel]
            terminalreporter.line(f"{kernel:<48}{count:>7}, {refused or 'none'} refused")
        total, refused = (self.built + self.refused).total(), self.refused.total()
        terminalreporter.line(f"{'distinct specialisations':<48}{total:>7}, {refused or 'none'} refused")
