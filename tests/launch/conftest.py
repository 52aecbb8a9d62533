"""Launches against a driver that only remembers them: needs Triton and a C compiler, but no GPU."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]
else:
    import torch
    from stub_gpu import stub_gpu

    # No longer than a module: others may run in this process, and CPU tensors are theirs.
    @pytest.fixture(scope="module")
    def _gpu():
        if torch.version.cuda is not None and torch.cuda.is_available():  # having asked, torch asks no more
            pytest.skip("there is a driver, in whose place the stub would stand")
        with stub_gpu() as gpu:
            yield gpu

    @pytest.fixture
    def gpu(_gpu):
        """The stub driver, with nothing launched and nothing remembered."""
        from gpuconv.dispatch.plan_cache import CACHE

        CACHE.clear()
        _gpu.reset()
        yield _gpu
        _gpu.reset()
        CACHE.clear()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "launch":
            item.add_marker(pytest.mark.codegen)
