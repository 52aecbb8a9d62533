"""The command line: info, explain for every public function, errors without a traceback, and the demonstration."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="the command line needs typer")
pytest.importorskip("rich", reason="the command line needs rich")

from importlib.util import find_spec

import numpy as np
from typer.testing import CliRunner

import gpuconv
from gpuconv.cli.demo_resnet import layers
from gpuconv.cli.demo_steps import steps
from gpuconv.cli.explain import parse_shape, parse_value
from gpuconv.cli.main import app
from gpuconv.config import BACKENDS

WORKLOAD = Path(__file__).resolve().parents[2] / "bench" / "workloads" / "resnet50.json"

has_torch = find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not has_torch, reason="torch is not installed")
needs_pictures = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")

CONV = ["--input", "2,4,8,8", "--weight", "6,4,3,3"]


@pytest.fixture(autouse=True)
def free_choice(monkeypatch):
    for name in ("GPUCONV_BACKEND", "GPUCONV_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_help_names_the_commands():
    done = run("--help")
    assert done.exit_code == 0
    assert all(name in done.stdout for name in ("info", "explain", "demo"))


@pytest.mark.parametrize(
    "command", [[], ["info"], ["explain"], ["explain", "conv2d"], ["tune"], ["demo"]], ids=" ".join
)
def test_help_in_short_and_in_long(command):
    long, short = run(*command, "--help"), run(*command, "-h")
    assert (long.exit_code, short.exit_code) == (0, 0) and long.stdout == short.stdout != ""


def test_version():
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"gpuconv {gpuconv.__version__}\n")


def test_help_lists_the_choices():
    shown = " ".join(run("explain", "conv2d", "-h").stdout.replace("│", " ").split())
    assert "One of relu, relu6, hardswish, silu, gelu, gelu_tanh, sigmoid, tanh." in shown
    assert "One of zeros, reflect, replicate, circular. Default: zeros." in shown
    assert "one of ieee, tf32, tf32x3" in shown and "(triton, cupy, numpy)" in shown
    assert "same, same_upper, same_lower, causal" in shown and "bfloat16" in shown and "Default: 1." in shown


def test_info_json_is_json_alone():
    done = run("info", "--json")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert facts["gpuconv"] == gpuconv.__version__
    assert facts["numpy"] == np.__version__
    assert [backend["name"] for backend in facts["backends"]] == list(BACKENDS)
    numpy = facts["backends"][-1]
    assert numpy["status"] == "ready"
    assert "numpy.conv.fprop.im2col" in numpy["solvers"]


def test_info_json_explains_what_is_missing():
    for backend in json.loads(run("info", "--json").stdout)["backends"]:
        assert backend["status"] in ("ready", "missing", "not part of this version")
        assert bool(backend["reason"]) == (backend["status"] == "missing")
        assert bool(backend["solvers"]) == (backend["status"] == "ready")


def test_info_table():
    done = run("info")
    assert done.exit_code == 0
    assert all(name in done.stdout for name in ("gpuconv", "numpy", *BACKENDS))


def test_info_shows_the_brackets_of_extras(monkeypatch):
    """They are what a user must type, and rich's markup as well."""
    from gpuconv.backends.cupy import backend as cupy_backend

    monkeypatch.setattr(cupy_backend, "_missing_package", lambda: "pip install 'cupy-cuda13x[ctk]'")
    assert "'cupy-cuda13x[ctk]'" in run("info").stdout


def test_info_reports_a_backend_that_is_not_there(monkeypatch):
    monkeypatch.setattr("gpuconv.cli.info.backends", lambda: {})
    facts = json.loads(run("info", "--json").stdout)
    assert {backend["status"] for backend in facts["backends"]} == {"not part of this version"}


def test_info_shows_settings(monkeypatch):
    monkeypatch.setenv("GPUCONV_WORKSPACE", "1000000")
    assert json.loads(run("info", "--json").stdout)["environment"]["GPUCONV_WORKSPACE"] == "1000000"


def test_explain_prints_what_the_library_says():
    done = run("explain", "conv2d", *CONV, "--stride", "2", "--padding", "1")
    assert done.exit_code == 0, done.output
    x, w = np.ones((2, 4, 8, 8), np.float32), np.ones((6, 4, 3, 3), np.float32)
    assert done.stdout == str(gpuconv.explain(gpuconv.conv2d, x, w, stride=2, padding=1)) + "\n"


def test_explain_all_lists_every_solver():
    x, w = np.ones((2, 4, 8, 8), np.float32), np.ones((6, 4, 3, 3), np.float32)
    shown = run("explain", "conv2d", *CONV, "--all").stdout
    for candidate in gpuconv.explain(gpuconv.conv2d, x, w).candidates:
        assert candidate.solver.id in shown and (candidate.reason is None or candidate.reason in shown)


@pytest.mark.parametrize(
    ("padding", "shown"),
    [("1", "1+1, 1+1"), ("1,2", "1+1, 2+2"), ("1:0,2:1", "1+0, 2+1"), ("same", "1+1, 1+1"), ("causal", "2+0, 2+0")],
)
def test_explain_padding(padding, shown):
    done = run("explain", "conv2d", *CONV, "--padding", padding)
    assert done.exit_code == 0, done.output
    assert f"{shown} (zeros)" in done.stdout


def test_explain_epilogue():
    options = ["--bias", "--residual", "--scale", "--shift", "--activation", "relu", "--padding", "1"]
    done = run("explain", "conv2d", *CONV, *options)
    assert done.exit_code == 0, done.output
    assert "bias, scale, shift, residual, relu" in done.stdout


def test_explain_unbatched_residual():
    done = run("explain", "conv1d", "--input", "4,8", "--weight", "6,4,3", "--residual")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("shape", ["2,4,8,8", "4,8,8"])
def test_explain_channels_last(shape):
    done = run("explain", "conv2d", "--input", shape, "--weight", "6,4,3,3", "--channels-last")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("channels_last") >= 2


def test_explain_forced_backend():
    done = run("explain", "conv2d", *CONV, "--backend", "numpy.conv.fprop.taps")
    assert done.exit_code == 0
    assert done.stdout.startswith(
        "runs on          nothing: backend='numpy.conv.fprop.taps' cannot run this call: needs 1 input channel per "
    )
    assert done.stdout.endswith("runs on          nothing, the call would raise NoSolverError\n")


@pytest.mark.parametrize("array", ["numpy", pytest.param("torch", marks=needs_torch)])
def test_explain_commits_no_memory(array):
    shapes = ["--input", "64,512,512,512", "--weight", "512,512,3,3"]  # 32 GiB in, 32 GiB out
    done = run("explain", "conv2d", *shapes, "--padding", "1", "--residual", "--array", array)
    assert done.exit_code == 0, done.output
    assert "64x512x512x512" in done.stdout


@needs_torch
def test_explain_bfloat16_is_torch():
    done = run("explain", "conv2d", *CONV, "--dtype", "bfloat16")
    assert done.exit_code == 0, done.output
    assert "torch on cpu" in done.stdout


CALLS = {
    "conv1d": ["--input", "2,4,8", "--weight", "6,2,3", "--groups", "2"],
    "conv3d": ["--input", "2,4,5,6,7", "--weight", "6,4,3,3,3", "--dilation", "1,1,2"],
    "conv_transpose1d": ["--input", "2,4,8", "--weight", "4,3,3", "--stride", "2", "--output-padding", "1", "--bias"],
    "conv_transpose2d": ["--input", "2,4,8,8", "--weight", "4,3,3,3", "--stride", "2", "--output-size", "18,18"],
    "conv_transpose3d": ["--input", "2,4,3,3,3", "--weight", "4,3,2,2,2", "--scale", "--residual"],
    "conv2d_input_grad": ["--input-size", "2,4,8,8", "--weight", "6,4,3,3", "--grad-output", "2,6,6,6"],
    "conv2d_weight_grad": ["--input", "2,4,8,8", "--weight-size", "6,4,3,3", "--grad-output", "2,6,6,6"],
    "causal_conv1d": ["--x", "2,8,20", "--weight", "8,1,4", "--bias", "--activation", "swish", "--seq-idx", "2,20"],
    "causal_conv1d_update": [
        "--x", "2,8", "--state", "5,8,6", "--weight", "8,4", "--cache-seqlens", "2", "--conv-state-indices", "2",
    ],
    "max_pool1d": ["--input", "2,4,8", "--kernel-size", "2", "--return-indices"],
    "max_pool2d": ["--input", "2,4,9,9", "--kernel-size", "3", "--stride", "2", "--padding", "1", "--ceil-mode"],
    "max_pool3d": ["--input", "2,4,8,8,8", "--kernel-size", "2,2,2"],
    "avg_pool2d": ["--input", "2,4,8,8", "--kernel-size", "2", "--no-count-include-pad", "--divisor-override", "3"],
    "lp_pool2d": ["--input", "2,4,8,8", "--norm-type", "2.5", "--kernel-size", "2"],
    "adaptive_avg_pool2d": ["--input", "2,4,8,8", "--output-size", "3,none"],
    "adaptive_max_pool1d": ["--input", "2,4,8", "--output-size", "3"],
    "fractional_max_pool2d": ["--input", "2,4,8,8", "--kernel-size", "2", "--output-ratio", "0.6"],
    "max_unpool2d": ["--input", "2,4,4,4", "--indices", "2,4,4,4", "--kernel-size", "2"],
    "max_pool2d_with_indices_backward": [
        "--grad-output", "2,4,4,4", "--input", "2,4,8,8", "--kernel-size", "2", "--stride", "2", "--padding", "0",
        "--dilation", "1", "--no-ceil-mode", "--indices", "2,4,4,4",
    ],
    "avg_pool2d_backward": ["--grad-output", "2,4,4,4", "--input", "2,4,8,8", "--kernel-size", "2"],
    "unfold": ["--input", "2,4,8,8", "--kernel-size", "3"],
    "scaled_conv2d": [
        "--input", "2,4,8,8", "--weight", "6,4,3,3", "--dtype", "int8", "--bias", "--input-scale", "0.5",
        "--weight-scale", "channels", "--output-scale", "array", "--out-dtype", "int8", "--channels-last",
    ],
    "scaled_conv1d": [
        "--input", "4,8", "--weight", "6,4,3", "--dtype", "float8_e4m3fn", "--input-scale", "array",
        "--weight-scale", "2",
    ],
    "fold": ["--input", "2,36,36", "--output-size", "8,8", "--kernel-size", "3"],
    "deform_conv1d": ["--input", "4,8", "--offset", "3,6", "--weight", "6,2,3", "--bias"],
    "deform_conv2d": [
        "--input", "2,4,8,8", "--offset", "2,36,8,8", "--mask", "2,18,8,8", "--weight", "6,4,3,3", "--padding", "1",
        "--channels-last",
    ],
}  # fmt: skip


@pytest.mark.parametrize("op", CALLS)
def test_explain_every_kind_of_function(op):
    done = run("explain", op, *CALLS[op])
    assert done.exit_code == 0, done.output
    *_, first, last = (line for line in done.stdout.splitlines() if line.startswith("runs on "))
    assert last.startswith(first) and first == done.stdout.splitlines()[0] and last == done.stdout.splitlines()[-1]
    assert len(done.stdout.splitlines()) <= 30
    data = json.loads(run("explain", op, *CALLS[op], "--json").stdout)
    assert data["runs_on"] in first and data["runs_on"] in {s["id"] for s in data["solvers"] if s["reason"] is None}


@pytest.mark.parametrize("shape", ["2,4,8,8", "4,8,8"])
@pytest.mark.parametrize(
    ("op", "weights"),
    [
        ("depthwise_separable_conv2d", ["--depthwise-weight", "8,1,3,3", "--pointwise-weight", "6,8,1,1"]),
        ("separable_conv2d", ["--column-weight", "4,4,3,1", "--row-weight", "6,4,1,3"]),
    ],
)
def test_explain_what_runs_in_two_steps(op, weights, shape):
    flags = [flag.replace("weight", "bias") for flag in weights[::2]]
    done = run("explain", op, "--input", shape, *weights, *flags, "--residual", "--padding", "1", "--channels-last")
    assert done.exit_code == 0, done.output
    first, second = done.stdout.split("\n\n")
    assert first.startswith("step 1 of 2\nruns on ") and second.startswith("step 2 of 2\nruns on ")
    rows = [dict(line.split("  ", 1) for line in step.splitlines() if "  " in line) for step in (first, second)]
    assert [row["epilogue"].strip() for row in rows] == ["bias", "bias, residual"]
    data = json.loads(run("explain", op, "--input", shape, *weights, "--json").stdout)
    assert len(data["then"]) == 1 and data["then"][0]["runs_on"] in second


def test_explain_has_every_public_function():
    shown = run("explain", "--help").stdout
    for name in gpuconv.__all__:
        if (
            name.startswith(("conv", "causal", "deform", "max_", "avg_", "lp_", "adaptive_", "fractional_"))
            or "separable" in name
            or "scaled" in name
        ):
            assert name in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["conv2d", "--input", "2,4,8,8", "--weight", "6,3,3,3"], "conv2d: input must be of 3 channels"),
        (["conv2d", *CONV, "--stride", "0"], "conv2d: stride must be positive"),
        (["conv2d", *CONV, "--padding", "sam"], "conv2d: padding must be"),
        (["conv2d", *CONV, "--padding-mode", "mirror"], "conv2d: padding_mode must be one of"),
        (["conv2d", *CONV, "--backend", "tritn"], "backend must be one of"),
        (["conv2d", *CONV, "--dtype", "float31"], "--dtype must be one of float16, bfloat16, float32, float64, "),
        (["conv2d", *CONV, "--dtype", "bfloat16", "--array", "numpy"], "--array must be torch for bfloat16"),
        (["conv2d", *CONV, "--array", "jax"], "--array must be"),
        (["conv2d", "--input", "2,4,8,a", "--weight", "6,4,3,3"], "--input must be a shape such as"),
        (["conv2d", *CONV, "--array", "numpy", "--device", "cuda"], "--device must be cpu for numpy arrays"),
        (["max_pool2d", "--input", "2,4,8,8", "--kernel-size", "0"], "max_pool2d: kernel_size must be"),
    ],
)
def test_bad_input_exits_2_with_the_library_s_message(arguments, message):
    done = run("explain", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.output
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["conv2d"], ["max_pool2d", "--weight", "1,1,1,1"], ["conv9d"]])
def test_bad_usage_exits_2(arguments):
    assert run("explain", *arguments).exit_code == 2


def test_wrong_setting_exits_2(monkeypatch):
    monkeypatch.setenv("GPUCONV_BACKEND", "cudnn")
    done = run("explain", "conv2d", *CONV)
    assert done.exit_code == 2
    assert "GPUCONV_BACKEND" in done.stderr


def test_parse_value():
    assert parse_value("1") == 1
    assert parse_value("0.5") == 0.5
    assert parse_value("1,2") == (1, 2)
    assert parse_value("1:0,2:1") == ((1, 0), (2, 1))
    assert parse_value("7,none") == (7, None)
    assert parse_value("same_upper") == "same_upper"


def test_parse_shape():
    assert parse_shape("input", "8x64x56") == parse_shape("input", "8,64,56") == (8, 64, 56)
    with pytest.raises(ValueError, match="--input must be a shape"):
        parse_shape("input", "8,,64")


@needs_pictures
def test_demo_quick(tmp_path):
    done = run("demo", "--quick", "--output", str(tmp_path / "new"))
    assert done.exit_code == 0, done.output
    assert "All results agree with the referee" in done.stdout
    assert ("torch float64" if has_torch else "definition") in done.stdout
    assert (tmp_path / "new" / "demo.png").read_bytes().startswith(b"\x89PNG")


@needs_pictures
def test_demo_in_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("demo", "--quick", "--output", str(tmp_path / "file"))
    assert done.exit_code == 2 and done.stderr.startswith("error: --output: ") and "Traceback" not in done.output


@pytest.mark.parametrize("columns", ["50", "200"])
def test_explain_wraps_at_the_width_of_a_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    done = run("explain", "conv2d", *CONV)
    assert done.exit_code == 0, done.output
    plain = re.sub(r"\x1b\[[01]m", "", done.stdout)
    assert "\x1b" not in plain, "bold at most"
    longest = max(map(len, plain.splitlines()))
    assert longest <= int(columns) and (longest > 80) == (columns == "200")


@needs_pictures
def test_demo_without_torch_says_who_the_referee_is(tmp_path, monkeypatch):
    monkeypatch.setattr("gpuconv.cli.demo.find_spec", lambda name: None if name == "torch" else find_spec(name))
    done = run("demo", "--quick", "--output", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "errors against definition, 48x48, definition, 12x12" in done.stdout
    assert "torch float64" not in done.stdout and "torch ms" not in done.stdout


@needs_pictures
@needs_torch
def test_demo_shows_torch_and_what_only_we_do(tmp_path):
    done = run("demo", "--quick", "--output", str(tmp_path))
    assert "torch ms  here/torch" in done.stdout
    alone = [step for step in steps(148, 128) if step.alone]
    assert [step.op for step in alone] == ["conv2d", "conv2d", "conv1d", "conv2d"]
    assert len(steps(148, 128)) - len(alone) == 11
    assert re.search(r"Fused epilogue +pad conv2d mul add add tanh +234,000 bytes", done.stdout)
    assert re.search(r"Causal padding +pad conv1d", done.stdout)


@needs_pictures
def test_demo_with_numpy_and_matplotlib_alone(tmp_path):
    """Neither typer and rich nor torch are imported."""
    code = """
import sys
for name in ("typer", "rich", "click", "torch"):
    sys.modules[name] = None
import importlib.util, gpuconv.cli.demo as demo
demo.find_spec = lambda name: None if name == "torch" else importlib.util.find_spec(name)
from gpuconv.__main__ import main
main()
"""
    line = [sys.executable, "-c", code, "demo", "--quick", "--output", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "All results agree with the referee" in done.stdout and (tmp_path / "demo.png").is_file()


@needs_pictures
def test_demo_fails_when_a_result_is_wrong(tmp_path, monkeypatch):
    right = gpuconv.avg_pool2d
    monkeypatch.setattr(gpuconv.functional, "avg_pool2d", lambda *arrays, **options: right(*arrays, **options) + 0.1)
    done = run("demo", "--quick", "--output", str(tmp_path))
    assert done.exit_code == 1
    assert "RESULTS DIFFER" in done.stdout


@needs_pictures
def test_demo_names_what_cannot_run(tmp_path, monkeypatch):
    def refuse(*arrays, **options):
        raise gpuconv.NoSolverError("avg_pool2d: no solver can run this call: too tired\nsolvers:")

    monkeypatch.setattr(gpuconv.functional, "avg_pool2d", refuse)
    done = run("demo", "--quick", "--output", str(tmp_path))
    assert done.exit_code == 0
    assert "none, see below" in done.stdout and "not measured" in done.stdout
    assert "avg_pool2d: no solver can run this call: too tired\n" in done.stdout


@needs_pictures
@pytest.mark.parametrize("quick", [["--quick"], pytest.param([], marks=needs_torch)], ids=["quick", "network"])
def test_demo_of_a_backend_that_cannot_run(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCONV_BACKEND", "cupy")
    done = run("demo", *quick, "--output", str(tmp_path))
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert done.stdout.endswith("Nothing ran, so nothing was compared.\n")
    assert "GPUCONV_BACKEND=cupy cannot run this call" in done.stdout
    assert ("ResNet-50: not run: " in done.stdout) == (not quick)


def test_resnet_of_the_demo_has_the_layers_of_the_workload():
    def key(weight, stride):
        return tuple(weight), tuple(stride)

    wanted = Counter()
    for layer in json.loads(WORKLOAD.read_text())["layers"]:
        if layer["op"] == "conv2d":
            wanted[key(layer["weight"], layer["stride"])] += layer["count"]
    found = Counter(key((n.k, n.c, n.kernel, n.kernel), (n.stride, n.stride)) for n in layers())
    assert found == wanted
    assert found.total() == 53
