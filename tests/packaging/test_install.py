"""A wheel, an editable install and a bare checkout all import and compute with NumPy alone."""

import json
import re
import subprocess
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

REPO = Path(__file__).resolve().parents[2]

# The reference is nine shifted products: it shares no code with the library. Small integers come out exact.
CONVOLVE = """
import importlib.metadata, json, sys
import numpy as np
import gpuconv, gpuconv.kernels.cu, gpuconv.kernels.tl, gpuconv.costs.measured

x = np.arange(2 * 3 * 5 * 6, dtype=np.float32).reshape(2, 3, 5, 6) % 7 - 3
w = np.arange(4 * 3 * 3 * 3, dtype=np.float32).reshape(4, 3, 3, 3) % 5 - 2
b = np.arange(4, dtype=np.float32)
padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
want = np.zeros((2, 4, 5, 6), np.float32) + b.reshape(1, 4, 1, 1)
for r in range(3):
    for s in range(3):
        want += np.einsum("nchw,kc->nkhw", padded[:, :, r : r + 5, s : s + 6], w[:, :, r, s])
got = gpuconv.conv2d(x, w, b, padding=1)
print(json.dumps({
    "type": type(got).__name__,
    "dtype": str(got.dtype),
    "equal": bool(np.array_equal(got, want)),
    "gpuconv": gpuconv.__file__,
    "tl": gpuconv.kernels.tl.__file__,
    "cu": gpuconv.kernels.cu.__file__,
    "sources": {name: gpuconv.kernels.cu.source(name) for name in gpuconv.kernels.cu.names()},
    "gpus": sorted(gpuconv.costs.constants.shipped()),
    "tables": len(gpuconv.costs.measured._tables()),
    "version": gpuconv.__version__,
    "frameworks": sorted({"torch", "triton", "cupy"} & set(sys.modules)),
}))
"""


def project() -> dict:
    return tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def check(output: str, gpuconv: Path, kernels: Path) -> None:
    """Check what CONVOLVE printed, and that gpuconv and its device code came from the folders named."""
    said = json.loads(output)
    assert said["equal"] and said["type"] == "ndarray" and said["dtype"] == "float32"
    assert Path(said["gpuconv"]) == gpuconv / "__init__.py"
    assert Path(said["tl"]) == kernels / "tl" / "__init__.py"
    assert Path(said["cu"]) == kernels / "cu" / "__init__.py"
    files = {path.name: path.read_text() for path in (REPO / "kernels" / "cu").glob("*.cu*")}
    assert set(said["sources"]) == {name.removesuffix(".cu") for name in files if name.endswith(".cu")}
    for name, text in said["sources"].items():
        # Each line is from the source or a header, and each header that is included anywhere is there.
        parts = re.findall(r'^#line 1 "([^"]+)"$', text, re.MULTILINE)
        assert parts[0] == f"{name}.cu" and {"common.cuh", "ptx.cuh"} <= set(parts) <= set(files)
        own = {line for part in parts for line in files[part].splitlines()}
        assert all(line in own or line == "" or line.startswith("#line ") for line in text.splitlines())
    costs = REPO / "gpuconv" / "costs"
    assert said["gpus"] == sorted(path.stem for path in (costs / "gpus").glob("*.json")) != []
    assert said["tables"] == len(list((costs / "tables").glob("*.json"))) > 0
    assert said["version"] == project()["version"]
    assert said["frameworks"] == []


def test_wheel_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers = Parser().parsestr(archive.read(metadata).decode())
    sources = {
        path.relative_to(REPO).as_posix()
        for folder in ("gpuconv", "kernels", "bench")
        for path in (REPO / folder).rglob("*")
        if path.is_file() and {"__pycache__", "results"}.isdisjoint(path.parts)
    }
    want = {name if name.startswith("gpuconv/") else f"gpuconv/{name}" for name in sources}
    # Every file of the folders ships, data included, and nothing else: no top-level `kernels`, no tests, no results.
    assert sorted(files) == sorted(want)
    assert "gpuconv/py.typed" in files
    device = {Path(name).suffix for name in files if name.startswith("gpuconv/kernels/cu/")}
    assert device == {".py", ".cu", ".cuh"}
    assert wheel.name.endswith("-py3-none-any.whl")
    base = [line for line in headers.get_all("Requires-Dist") if "extra ==" not in line]
    assert [line.replace(" ", "") for line in base] == ["numpy>=1.26"]


def test_benchmarks_are_found_in_a_wheel_and_beside_a_checkout(wheel_env):
    """They are ``gpuconv.bench``, whose modules import each other relatively, and time a layer with NumPy alone."""
    code = """
from gpuconv.bench.layers import Layer, measure, network_layers, networks
(row,) = measure([Layer("conv2d", (1, 2, 5, 5), (3, 2, 3, 3), {"padding": 1})], "cpu", "float32", 1)
print(row.solver, row.ours > 0, row.theirs, len(network_layers("resnet50", 1)) > 20, len(networks()) > 10)
"""
    assert wheel_env.run(code).split() == ["numpy.conv.fprop.im2col", "True", "None", "True", "True"]
    absolute = [
        path.name
        for path in (REPO / "bench").glob("*.py")
        if re.search(r"^\s*(from|import) bench\b", path.read_text(), re.M)
    ]
    assert absolute == []


def test_wheel_runs_with_numpy_alone(wheel_env):
    installed = wheel_env.run("import importlib.metadata as m; print(sorted(d.name for d in m.distributions()))")
    assert installed == "['gpuconv', 'numpy']"
    site = Path(wheel_env.run("import sysconfig; print(sysconfig.get_path('purelib'))"))
    check(wheel_env.run(CONVOLVE), site / "gpuconv", site / "gpuconv" / "kernels")


def test_unknown_cuda_source_lists_the_names(wheel_env):
    code = """
import gpuconv.kernels.cu as cu
try:
    cu.source("absent")
except ValueError as error:
    assert "'absent'" in str(error) and all(name in str(error) for name in cu.names()), error
    print("refused")
"""
    assert wheel_env.run(code) == "refused"


def test_editable_install(editable_env):
    env, sources = editable_env
    for cwd in (None, sources):
        check(env.run(CONVOLVE, cwd=cwd), sources / "gpuconv", sources / "kernels")


def test_bare_checkout(wheel_env):
    # The wheel is installed in this environment too; PYTHONPATH comes first.
    check(wheel_env.run(CONVOLVE, pythonpath=REPO), REPO / "gpuconv", REPO / "kernels")
    check(wheel_env.run(CONVOLVE, cwd=REPO), REPO / "gpuconv", REPO / "kernels")


OWNER = "import kernels; print(kernels.OWNER)"


def test_foreign_kernels_wins_beside_the_wheel(wheel_env_beside_foreign):
    env = wheel_env_beside_foreign
    site = Path(env.run("import sysconfig; print(sysconfig.get_path('purelib'))"))
    assert env.run(OWNER) == "foreign"
    assert env.run(OWNER, cwd=REPO) == "foreign"
    assert env.run(f"import gpuconv.kernels.tl; {OWNER}", cwd=REPO) == "foreign"
    check(env.run(f"import kernels\n{CONVOLVE}"), site / "gpuconv", site / "gpuconv" / "kernels")


def test_foreign_kernels_wins_beside_an_editable_install(editable_env_beside_foreign):
    env, sources = editable_env_beside_foreign
    assert env.run(OWNER) == "foreign"
    assert env.run(OWNER, cwd=sources) == "foreign"
    check(env.run(f"import kernels\n{CONVOLVE}", cwd=sources), sources / "gpuconv", sources / "kernels")


@pytest.mark.parametrize("command", [["bin/gpuconv"], ["bin/python", "-m", "gpuconv"]], ids=["script", "module"])
def test_command_line_with_numpy_alone(wheel_env, command):
    """What is installed can be asked without typer and rich; the rest says how to get them."""

    def run(*arguments):
        line = [str(wheel_env.root / command[0]), *command[1:], *arguments]
        return subprocess.run(line, cwd=wheel_env.elsewhere, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    done = run("info")
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert rows["gpuconv"].strip() == project()["version"] and rows["torch"].strip() == "not installed"
    assert "pip install torch triton" in rows["backend triton"]
    facts = json.loads(run("info", "--json").stdout)
    assert [backend["status"] for backend in facts["backends"]] == ["missing", "missing", "ready"]
    assert run("--version").stdout.split() == ["gpuconv", project()["version"]]
    assert "info" in run("-h").stdout and "pip install typer rich" in run("--help").stdout
    for arguments in (["explain", "conv2d", "--input", "1,1,8,8"], ["tune", "-h"], ["bench"]):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "pip install typer rich" in done.stderr and len(done.stderr.splitlines()) == 1
    done = run("demo", "--quick")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: demo needs matplotlib and pillow: pip install matplotlib pillow\n"
    for arguments in (["info", "--jsn"], ["explai"], []):
        done = run(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr
