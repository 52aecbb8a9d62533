"""Launches against a driver that only remembers them: needs Triton and a C compiler, but no GPU."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]
else:
    from stub_gpu import stub_gpu

    @pytest.fixture(scope="session")
    def _gpu():
        with stub_gpu() as gpu:
            yield gpu

    @pytest.fixture
    def gpu(_gpu):
        """The stub driver, with nothing launched and nothing remembered."""
        from gpuconv.plan_cache import CACHE

        CACHE.clear()
        _gpu.reset()
        yield _gpu
        _gpu.reset()
        CACHE.clear()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "launch":
            item.add_marker(pytest.mark.codegen)
