"""Where a run happened: hardware, software, and a fingerprint that says which results may stand side by side."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import gpuconv

from .contenders import version_of
from .store import Store

__all__ = ["commit", "environment", "fingerprint", "gpu_name", "gpu_state", "note", "noted"]

REPO = Path(__file__).resolve().parents[1]

METHOD = 1
"""Number of the method of measurement: a change that moves results gets the next."""

_SMI_FIELDS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu", "pstate")


def gpu_name(device: str) -> str:
    """Return the GPU's name as a folder name has it, for example ``nvidia-h200``."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu dry run"
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def gpu_state() -> dict[str, str]:
    """Return clocks, power and temperature as ``nvidia-smi`` reads them now; nothing where it cannot."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode != 0 or not done.stdout.strip():
        return {}
    return dict(zip(_SMI_FIELDS, done.stdout.splitlines()[0].split(", ")))


def commit() -> str | None:
    """Return the commit: what ``GPUCONV_COMMIT`` says, since a tree may travel without its history, else git's."""
    if os.environ.get("GPUCONV_COMMIT"):
        return os.environ["GPUCONV_COMMIT"]
    command = ["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def environment(device: str, whole: bool = True) -> dict[str, Any]:
    """Describe hardware and software, dry runs say so; what :func:`fingerprint` reads alone if it need not be whole."""
    about: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "dry_run": device != "cuda",
        "gpu": "none (dry run in the interpreter)",
        "gpuconv": gpuconv.__version__,
        "commit": commit() if whole else None,
        "method": METHOD,
        "python": platform.python_version(),
        "host": f"{platform.machine()}, {os.cpu_count()} logical processors, {platform.release()}",
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
        "triton": version_of("triton"),
        "cupy": version_of("cupy", "cupy", "cupy-cuda12x", "cupy-cuda13x"),
        "numpy": version_of("numpy"),
        "flag_gems": version_of("flag_gems", "flag_gems", "flag-gems"),
        "tileops": version_of("tileops"),
    }
    if device == "cuda":
        p = torch.cuda.get_device_properties()
        about |= {
            "gpu": p.name, "capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count,
            "memory_mib": p.total_memory >> 20, "l2_mib": p.L2_cache_size / 2**20,
            "state": gpu_state() if whole else {},
        }  # fmt: skip
    return about


def fingerprint(about: Mapping[str, Any]) -> str:
    """Return the identity of a run: results of another GPU, library version or method are not its results.

    The sources are not in it: each record says which ones it depends on.
    """
    names = ("gpu", "method", "torch", "triton", "cupy", "cudnn", "dry_run")
    return hashlib.sha256(repr([about.get(name) for name in names]).encode()).hexdigest()[:10]


def note(store: Store, about: Callable[[], Mapping[str, Any]]) -> None:
    """Record where, and of what sources, the records that follow are, unless the last such record says so."""
    key = store.known.get("gpuconv", "")
    noted = [record for record in store.records if record["stage"] == "environment"]
    if not noted or (noted[-1]["key"], noted[-1]["run"]) != (key, store.fingerprint):
        store.forget("environment", key)
        store.add("environment", key, about=dict(about()), known=dict(store.known))


def noted(folder: Path) -> tuple[dict[str, Any], Store] | None:
    """Return the last environment in a folder of results, and its records: those of the sources that it had."""
    records = Store(folder, "")
    records.close()
    last = next((record for record in reversed(records.records) if record["stage"] == "environment"), None)
    if last is None:
        return None
    store = Store(folder, last["run"], last["known"])
    of_run = [record for record in store.records if record["stage"] == "environment" and record["run"] == last["run"]]
    return {**last["about"], "commits": [record["about"]["commit"] for record in of_run]}, store
