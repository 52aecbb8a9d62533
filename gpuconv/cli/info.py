"""What ``gpuconv info`` says: what is installed, which GPUs there are, which backends can run. Needs NumPy alone."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections import Counter
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from ..config import BACKENDS, VERSION
from ..dispatch import backends
from ..packs import packs

__all__ = ["info_facts", "info_json", "info_text"]

_CUPY_DISTRIBUTIONS = ("cupy", "cupy-cuda12x", "cupy-cuda13x")


def _version(*distributions: str) -> str | None:
    """Return the version of the first of `distributions` that is installed. Imports nothing."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _gpus() -> list[dict[str, str]]:
    """List the GPUs by ``nvidia-smi``, which creates no CUDA context; without it, by torch."""
    fields = ("name", "compute_cap", "memory.total", "driver_version")
    tool = shutil.which("nvidia-smi")
    if tool:
        command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:
            rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
            return [dict(zip(("name", "compute capability", "memory", "driver"), row)) for row in rows]
    if find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": p.name, "compute capability": f"{p.major}.{p.minor}", "memory": f"{p.total_memory >> 20} MiB"}
        for p in found
    ]


def _torch_cuda() -> str | None:
    """Return the CUDA version that torch was built for, ``None`` without torch or in a build without CUDA."""
    if find_spec("torch") is None:
        return None
    import torch

    built: str | None = torch.version.cuda
    return built


def _backends() -> list[dict[str, Any]]:
    """Describe each backend: ready, missing (and why), or not part of this version."""
    present = backends()
    found: list[dict[str, Any]] = []
    for name in BACKENDS:
        if name not in present:
            found.append({"name": name, "status": "not part of this version", "reason": None, "solvers": []})
            continue
        reason = present[name].missing()
        solvers = [] if reason else [solver.id for solver in present[name].solvers()]
        status = "missing" if reason else "ready"
        found.append({"name": name, "status": status, "reason": reason, "solvers": solvers})
    return found


def _packs() -> list[dict[str, Any]]:
    """Describe each pack that was found: where, launches by architecture, or why it is ignored."""
    found: list[dict[str, Any]] = []
    for pack in packs():
        archs = Counter(entry.arch for entry in pack.entries)
        found.append(
            {
                "folder": str(pack.folder),
                "from": pack.origin,
                "ignored": pack.reason,
                "launches": dict(sorted(archs.items())),
            }
        )
    return found


def info_facts() -> dict[str, Any]:
    """Return everything as plain data."""
    return {
        "gpuconv": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": _version("numpy"),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "cupy": _version(*_CUPY_DISTRIBUTIONS),
        "cuda of torch": _torch_cuda(),
        "gpus": _gpus(),
        "backends": _backends(),
        "packs": _packs(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("GPUCONV_") or name in ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES")
        },
    }


def info_json() -> str:
    """Return everything as JSON."""
    return json.dumps(info_facts(), indent=2)


def info_text() -> str:
    """Return everything in lines, one fact each."""
    facts = info_facts()
    absent = {"cuda of torch": "none (a build without CUDA)" if facts["torch"] else "torch is not installed"}
    rows = [
        (name, facts[name] or absent.get(name, "not installed"))
        for name in ("gpuconv", "python", "platform", "numpy", "torch", "cuda of torch", "triton", "cupy")
    ]
    for gpu in facts["gpus"]:
        rows.append(("GPU", ", ".join(value if key == "name" else f"{key} {value}" for key, value in gpu.items())))
    if not facts["gpus"]:
        rows.append(("GPU", "none found"))
    rows += [(f"${name}", value) for name, value in facts["environment"].items()]
    for backend in facts["backends"]:
        said = f"{backend['status']}: {backend['reason']}" if backend["reason"] else backend["status"]
        solvers = f", {len(backend['solvers'])} solvers" if backend["solvers"] else ""
        rows.append((f"backend {backend['name']}", said + solvers))
    for pack in facts["packs"]:
        launches = ", ".join(f"{count} launches for {arch}" for arch, count in pack["launches"].items()) or "empty"
        said = f"ignored: {pack['ignored']}" if pack["ignored"] else launches
        rows.append(("pack", f"{pack['folder']} ({pack['from']}): {said}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in rows)
