"""Settings: what wins over what, and that bad values are named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpuconv
from gpuconv import config

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GPUCONV_")]:
        monkeypatch.delenv(name)


def test_default_is_free_choice() -> None:
    assert config.forced_backend() is None
    assert config.workspace_limit() == 256 * 2**20


@pytest.mark.parametrize("name", [*config.BACKENDS, "numpy.conv.fprop.im2col", "triton.conv.fprop.general"])
def test_names_and_solver_ids_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.validate_backend(name, "backend") == name
    assert config.forced_backend(name) == name
    with gpuconv.use_backend(name):
        assert config.forced_backend() == name
    monkeypatch.setenv("GPUCONV_BACKEND", name)
    assert config.forced_backend() == name


def test_argument_over_context_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCONV_BACKEND", "cupy")
    assert config.forced_backend() == "cupy"
    with gpuconv.use_backend("numpy"):
        assert config.forced_backend() == "numpy"
        assert config.forced_backend("triton") == "triton"
        assert config.forced_backend("auto") is None
        with gpuconv.use_backend("triton"):
            assert config.forced_backend() == "triton"
        assert config.forced_backend() == "numpy"
        with gpuconv.use_backend("auto"):
            assert config.forced_backend() is None
    assert config.forced_backend() == "cupy"
    for nothing in ("", "auto"):
        monkeypatch.setenv("GPUCONV_BACKEND", nothing)
        assert config.forced_backend() is None


def test_context_ends_with_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), gpuconv.use_backend("numpy"):
        raise ZeroDivisionError
    assert config.forced_backend() is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *((name, None) for name in ("cudnn", "", ".numpy", "auto.x")),
        ("Numpy", "numpy"),
        ("numpy ", "numpy"),
        ("AUTO", "auto"),
        ("tritn", "triton"),
        ("numpi.conv.fprop.taps", "numpy.conv.fprop.taps"),
    ],
)
def test_unknown_backend(name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = "must be one of 'auto', 'triton', 'cupy', 'numpy', or a solver id that starts with one; but got "
    hint = rf" \(did you mean {meant!r}\?\)" if meant else ""
    with pytest.raises(ValueError, match=rf"^backend {choices}{name!r}{hint}$"):
        config.forced_backend(name)
    with pytest.raises(ValueError, match=rf"^use_backend {choices}{name!r}{hint}$"), gpuconv.use_backend(name):
        pass
    if name:  # set to nothing means not set
        monkeypatch.setenv("GPUCONV_BACKEND", name)
        with pytest.raises(ValueError, match=rf"^environment variable GPUCONV_BACKEND {choices}{name!r}{hint}$"):
            config.forced_backend()


@pytest.mark.parametrize("name", [None, 1, b"numpy", ["numpy"]])
def test_backend_must_be_a_string(name: object) -> None:
    with pytest.raises(TypeError, match=r"^use_backend must be a string, but got "), gpuconv.use_backend(name):
        pass


@pytest.mark.parametrize(("value", "limit"), [("0", 0), ("1048576", 2**20), (" 7 ", 7), ("", 256 * 2**20)])
def test_workspace_limit(value: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCONV_WORKSPACE", value)
    assert config.workspace_limit() == limit


@pytest.mark.parametrize("value", ["-1", "1.5", "256MiB", "inf", "0x10"])
def test_bad_workspace_limit(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCONV_WORKSPACE", value)
    required = "must be a non-negative number of bytes, but got "
    with pytest.raises(ValueError, match=rf"^environment variable GPUCONV_WORKSPACE {required}{value!r}$"):
        config.workspace_limit()


CONV = "import numpy as np, gpuconv; [gpuconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2))) for _ in range(2)]"


@pytest.mark.parametrize(("level", "lines"), [(None, 0), ("warning", 0), ("INFO", 1), ("debug", 1)])
def test_log_level(level: str | None, lines: int) -> None:
    done = run_python(CONV, {} if level is None else {"GPUCONV_LOG": level})
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr.splitlines() == ["conv1d runs on numpy.conv.fprop.im2col"] * lines


def test_bad_log_level() -> None:
    done = run_python(CONV, {"GPUCONV_LOG": "loud"})
    assert done.returncode == 1
    assert "ValueError: environment variable GPUCONV_LOG must be one of DEBUG, INFO, WARNING" in done.stderr
    assert "but got 'loud'" in done.stderr


def run_python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPO), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
