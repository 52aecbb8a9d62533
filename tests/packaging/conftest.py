"""Environments that hold NumPy and one form of gpuconv; each is built once a session."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Env:
    """A virtual environment without access to the packages of the one that runs the tests."""

    root: Path
    elsewhere: Path

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    def run(self, code: str, cwd: Path | None = None, pythonpath: Path | None = None) -> str:
        """Run code in a new process, in an empty folder unless told otherwise, and return what it printed."""
        env = clean_environ()
        if pythonpath is not None:
            env["PYTHONPATH"] = str(pythonpath)
        return checked([str(self.python), "-c", code], cwd=cwd or self.elsewhere, env=env).strip()

    def pip(self, *arguments: str) -> None:
        checked([sys.executable, "-m", "pip", "--python", str(self.python), *arguments, "--quiet"], cwd=self.elsewhere)


def clean_environ() -> dict[str, str]:
    """Return the environment less what would let another gpuconv, or another backend, in."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("GPUCONV_")}


def checked(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env or clean_environ(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_sources(target: Path) -> Path:
    """Copy what a build reads, so that building leaves no build/ or egg-info in the checkout and reuses none."""
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, target)
    for name in ("gpuconv", "kernels", "bench"):
        shutil.copytree(REPO / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return target


def make_env(tmp: Path) -> Env:
    (tmp / "elsewhere").mkdir()
    checked([sys.executable, "-m", "venv", "--without-pip", str(tmp / "venv")], cwd=tmp)
    return Env(tmp / "venv", tmp / "elsewhere")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist, and the wheel from it."""
    tmp = tmp_path_factory.mktemp("build")
    sources = copy_sources(tmp / "sources")
    checked([sys.executable, "-m", "build", "--outdir", str(tmp / "dist"), str(sources)], cwd=tmp)
    (built,) = (tmp / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="session")
def wheel_env(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Env:
    env = make_env(tmp_path_factory.mktemp("wheel"))
    env.pip("install", str(wheel))
    return env


@pytest.fixture(scope="session")
def editable_env(tmp_path_factory: pytest.TempPathFactory) -> tuple[Env, Path]:
    """Return the environment and the checkout that is installed in it, a copy."""
    tmp = tmp_path_factory.mktemp("editable")
    env = make_env(tmp)
    sources = copy_sources(tmp / "sources")
    env.pip("install", "--editable", str(sources))
    return env, sources


@pytest.fixture(scope="session")
def foreign_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a wheel of another distribution whose top-level package is `kernels`."""
    path = tmp_path_factory.mktemp("foreign") / "kernels-9.9-py3-none-any.whl"
    info = "kernels-9.9.dist-info"
    files = {
        "kernels/__init__.py": "OWNER = 'foreign'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: kernels\nVersion: 9.9\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def wheel_env_beside_foreign(wheel_env: Env, foreign_kernels: Path) -> Iterator[Env]:
    wheel_env.pip("install", "--no-deps", "--no-index", str(foreign_kernels))
    yield wheel_env
    wheel_env.pip("uninstall", "--yes", "kernels")


@pytest.fixture
def editable_env_beside_foreign(editable_env: tuple[Env, Path], foreign_kernels: Path) -> Iterator[tuple[Env, Path]]:
    env, _ = editable_env
    env.pip("install", "--no-deps", "--no-index", str(foreign_kernels))
    yield editable_env
    env.pip("uninstall", "--yes", "kernels")
