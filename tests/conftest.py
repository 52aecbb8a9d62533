"""What every test shares: when GPU tests run, seeded generators, and whether the long lists of cases are wanted."""

import os
import tempfile
import zlib

import numpy as np
import pytest

# What the user tuned is no business of tests: plans are the defaults, and nothing is written to the user's folder.
os.environ["GPUCONV_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"gpuconv-tests-{os.getpid()}")
os.environ.pop("GPUCONV_TUNE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="a GPU test without its GPU fails instead of skipping")


def missing_gpu(item: pytest.Item) -> str | None:
    """Return what a test needs and this machine lacks, by the test's markers."""
    wanted = {name for name in ("gpu", "multi_gpu", "sm90") if item.get_closest_marker(name)}
    if not wanted:
        return None
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device"
    if "multi_gpu" in wanted and torch.cuda.device_count() < 2:
        return "no second CUDA device"
    if "sm90" in wanted and torch.cuda.get_device_capability() != (9, 0):
        return "no Hopper GPU (sm_90)"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the gate, or the full run, does not run, see ``gate.py``."""
    full = os.environ.get("GPUCONV_TEST_FULL") == "1"
    if full and os.environ.get("GPUCONV_TEST_BOTH") == "1":
        return
    from gate import left_out, left_out_in_full

    out = (left_out_in_full if full else left_out)(item for item in items if item.path.parent.name != "interpret")
    items[:] = [item for item in items if item not in out]
    config.hook.pytest_deselected(items=list(out))


def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = missing_gpu(item)
    if reason is None:
        return
    if item.config.getoption("--require-gpu"):
        pytest.fail(f"{reason}, and --require-gpu was given", pytrace=False)
    pytest.skip(reason)


def seed_of(request: pytest.FixtureRequest) -> int:
    """Return a number that depends on the test's name and parameters alone."""
    return zlib.crc32(request.node.name.encode())


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A NumPy generator, the same in every run of the same test."""
    return np.random.default_rng(seed_of(request))


@pytest.fixture
def torch_rng(request: pytest.FixtureRequest):
    """A torch CPU generator, the same in every run of the same test."""
    import torch

    return torch.Generator().manual_seed(seed_of(request))


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether ``GPUCONV_TEST_FULL=1`` asks for the long lists of cases (``make test-full``)."""
    return os.environ.get("GPUCONV_TEST_FULL") == "1"
