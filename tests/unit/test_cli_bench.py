"""``gpuconv bench``: tiny problems on the CPU, a table and a plot, and errors without a traceback."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("typer", reason="the command line needs typer")
pytest.importorskip("rich", reason="the command line needs rich")

from typer.testing import CliRunner

from gpuconv.cli.bench import _measuring
from gpuconv.cli.main import app

has_torch = find_spec("torch") is not None
CONV = "conv2d input=1,4,8,8 weight=6,2,3,3 padding=1 groups=2"
POOL = "max_pool2d input=1,4,8,8 kernel_size=2"


@pytest.fixture(autouse=True)
def free_choice(monkeypatch):
    monkeypatch.delenv("GPUCONV_BACKEND", raising=False)


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments])


def test_help_says_what_times_are():
    done = run("--help")
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", done.stdout).split())
    assert done.exit_code == 0
    for part in ("--network", "--problem", "--device", "--rounds", "within one run alone"):
        assert part in text


def test_two_problems(tmp_path):
    done = run("--problem", CONV, "--problem", POOL, "--rounds", "1", "--output", str(tmp_path / "new"))
    assert done.exit_code == 0, done.output
    title, lines = done.stdout.splitlines()[0], done.stdout.splitlines()
    assert re.match(r"Problems, float32, on .+, \d+ threads", title) and ("beside torch" in title) == has_torch
    assert any(line.startswith("conv2d 1x4x8x8 6x2x3x3 padding=1 groups=2 ") for line in lines)
    assert "numpy.pool.max.fprop" in done.stdout and ("all calls" in done.stdout) == has_torch
    if find_spec("matplotlib") is not None:
        assert (tmp_path / "new" / "layers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not has_torch, reason="torch is not installed")
def test_without_torch_numpy_arrays_are_timed(tmp_path, monkeypatch):
    bench = _measuring()

    def missing(name):
        return None if name == "torch" else find_spec(name)

    monkeypatch.setattr("gpuconv.cli.bench.find_spec", missing)
    monkeypatch.setattr(sys.modules[bench.__name__], "find_spec", missing)
    done = run("--problem", CONV, "--rounds", "1", "--output", str(tmp_path))
    assert done.exit_code == 0 and "beside torch" not in done.stdout


@pytest.mark.skipif(not has_torch, reason="torch is not installed")
def test_a_wrong_result_is_not_timed(tmp_path, monkeypatch):
    import gpuconv

    right = gpuconv.max_pool2d
    monkeypatch.setattr(gpuconv, "max_pool2d", lambda *arrays, **options: right(*arrays, **options) + 1)
    done = run("--problem", POOL, "--rounds", "1", "--output", str(tmp_path))
    assert done.exit_code == 1 and "the results differ" in done.stdout
    assert not (tmp_path / "layers.png").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--network", "resnet"], "--network must be one of "),
        (["--dtype", "int8"], "--dtype must be one of float32"),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N"),
        (["--problem", "conv2d 1,2"], "'1,2' is no NAME=VALUE"),
        (["--problem", "conv9d input=1"], "'conv9d' is no convolution or pooling"),
        (["--problem", "causal_conv1d input=1,3,4 weight=3,4"], "'causal_conv1d' is no convolution or pooling"),
        (["--problem", "separable_conv2d input=1,3,4,4 weight=3,1,3,3"], "that torch has"),
        (["--problem", "depthwise_separable_conv2d input=1,3,4,4 weight=3,1,3,3"], "that torch has"),
        (["--problem", "deform_conv2d input=1,3,4,4 weight=3,3,3,3"], "that torch has"),
        (["--problem", "conv2d weight=1,1,1,1"], "says no input"),
        (["--problem", "conv2d input=1,3,4,4 weight=1,2,1,1"], "weight"),
    ],
)
def test_errors(arguments, said, tmp_path):
    done = run(*arguments, "--output", str(tmp_path))
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and said in done.stderr
    assert "Traceback" not in done.output


def test_layers_of_every_network():
    bench = _measuring()
    assert len(bench.networks()) > 10
    for network in bench.networks():
        assert all(layer.input[0] == 2 and layer.text for layer in bench.network_layers(network, 2))
