"""The codegen table: what each kernel compiles to, per Triton version and GPU architecture.

``python tests/codegen/table.py`` recompiles with the installed Triton every entry whose kernel or configuration changed
(``--all``: every entry) and rewrites its part of ``table.json`` and the page ``TABLE.md``. The test lane checks the
committed rows against budgets, and recompiles a sample of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import triton
from aot import compile_for, fprop_pass_arguments, launch_arguments, specialise, sum_arguments
from problems import awkward_problems, fprop_pass_problems, gradient_problems, transposed_problems, workload_problems

from gpuconv.backends.triton_conv import FpropImplicitGemm
from gpuconv.backends.triton_conv_grad import DgradImplicitGemm, WgradSplitK
from gpuconv.kernels.tl import common, conv_dgrad, conv_fprop, conv_wgrad
from gpuconv.problem import ConvProblem

HERE = Path(__file__).parent
TABLE = HERE / "table.json"
PAGE = HERE / "TABLE.md"
ARCHITECTURES = (80, 90, 100)
VERSION = triton.__version__
MODULES = {"conv_fprop": conv_fprop, "conv_dgrad": conv_dgrad, "conv_wgrad": conv_wgrad}
MODULE_OF = {"fprop": "conv_fprop", "dgrad": "conv_dgrad", "transposed": "conv_dgrad", "wgrad": "conv_wgrad"}
SOLVERS = {
    "fprop": FpropImplicitGemm(),
    "dgrad": DgradImplicitGemm(),
    "transposed": DgradImplicitGemm(),
    "wgrad": WgradSplitK(),
}

PASSES = ("fprop_pack", "fprop_sum", "wgrad_sum")
"""First words of the entries that stand for a small pass before or after the GEMM of their problem."""

Rows = dict[str, dict[str, Any]]


def small_pass(name: str) -> str | None:
    """Return which of `PASSES` an entry stands for, or None for a GEMM."""
    word = name.partition("/")[0]
    return word if word in PASSES else None


def source_hashes() -> dict[str, str]:
    """Return a hash of the sources of each kernel."""
    shared = Path(common.__file__).read_bytes()
    texts = {name: shared + Path(module.__file__).read_bytes() for name, module in MODULES.items()}
    return {name: hashlib.sha256(text).hexdigest()[:16] for name, text in texts.items()}


def launch(name: str, problem: ConvProblem) -> tuple[Any, dict[str, Any]]:
    """Return the compiler's view of the launch that the dispatcher would plan for an entry, and its configuration."""
    config = SOLVERS[problem.kind].plan(problem).config
    if name.startswith("wgrad_sum/"):
        arguments = sum_arguments(problem, config)
        config = {"BLOCK_M": arguments["BLOCK"], "BLOCK_N": 1, "BLOCK_K": 1, "num_warps": 4, "num_stages": 3}
        return specialise(conv_wgrad._conv_wgrad_sum_kernel, arguments), config
    if small_pass(name):
        arguments = fprop_pass_arguments(small_pass(name), problem, config)
        tile = [arguments[side] for side in arguments if side.startswith("BLOCK_")]
        config = {"BLOCK_M": tile[0], "BLOCK_N": tile[1], "BLOCK_K": 1, "num_warps": 4, "num_stages": 3}
        return specialise(getattr(conv_fprop, f"_conv_{small_pass(name)}_kernel"), arguments), config
    kernel = {
        "conv_fprop": conv_fprop._conv_fprop_implicit_gemm_kernel,
        "conv_dgrad": conv_dgrad._conv_dgrad_implicit_gemm_kernel,
        "conv_wgrad": conv_wgrad._conv_wgrad_split_k_kernel,
    }[MODULE_OF[problem.kind]]
    return specialise(kernel, launch_arguments(problem, config)), config


def entries() -> dict[str, ConvProblem]:
    """Return the problems of which each stands for a kind of launch, by name.

    A kind is told by kernel size, tile, dtype, formats, epilogue, and whether channels are multiples of 16. Strides,
    dilations, and heights or widths that happen to be 1 or multiples of 16 change constants and a few instructions.
    """
    seen: dict[tuple[Any, ...], tuple[str, ConvProblem]] = {}
    forward = (*awkward_problems(), *workload_problems(), *fprop_pass_problems())
    for name, problem in (*forward, *transposed_problems(), *gradient_problems()):
        config = dict(SOLVERS[problem.kind].plan(problem).config)
        config["splits"] = config.get("splits", 1) > 1
        config.pop("phases", None)
        aligned = tuple(channels // problem.groups % 16 == 0 for channels in (problem.c, problem.k))
        epilogue = (problem.bias, problem.scale, problem.shift, problem.residual, problem.activation)
        modes = (problem.padding_mode, problem.dtype, problem.precision, problem.x_format, problem.index64)
        # The taps of a phase depend on the stride, and the sums of splits have no tile of their own.
        phases = problem.kind in ("dgrad", "transposed") and max(problem.stride) > 1
        which = (problem.kind, small_pass(name), phases)
        kind = (which, problem.kernel, *sorted(config.items()), aligned, epilogue, modes)
        seen.setdefault(kind, (name, problem))
    return dict(seen.values())


def measure(job: tuple[str, int]) -> tuple[str, int, dict[str, Any]]:
    """Compile entry `job` (its name and an architecture) and return its row."""
    name, capability = job
    problem = _ENTRIES[name]
    source, config = launch(name, problem)
    return name, capability, _planned(config) | compile_for(source, capability, config).row()


def _planned(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a row that the plan decides."""
    tile = "x".join(str(config[side]) for side in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    return {"tile": tile, "warps": config["num_warps"], "stages": config["num_stages"]}


_ENTRIES = entries()


def load() -> dict[str, Any]:
    """Return the committed table: version -> {"sources": {kernel: hash}, "rows": {architecture: {name: row}}}."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def _write(table: dict[str, Any]) -> None:
    """Write the table with one row per line, so that a diff shows what changed."""
    lines = ["{"]
    for number, (version, part) in enumerate(sorted(table.items())):
        lines += [f' "{version}": {{', f'  "sources": {json.dumps(part["sources"])},', '  "rows": {']
        for place, (arch, rows) in enumerate(sorted(part["rows"].items())):
            body = [f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items())]
            lines += [f'   "{arch}": {{', ",\n".join(body), "   }" + ("," if place + 1 < len(part["rows"]) else "")]
        lines += ["  }", " }" + ("," if number + 1 < len(table) else "")]
    TABLE.write_text("\n".join([*lines, "}"]) + "\n")


def _page(table: dict[str, Any]) -> str:
    """Render the rows of sm_90 as Markdown."""
    text = [
        "# Codegen table",
        "",
        "What each kernel compiles to on sm_90, without a GPU: `python tests/codegen/table.py` makes this page.",
        "Rows without a kernel in front are of the forward one.",
        "Registers and stack are per thread, shared memory in bytes per block, `wide` counts 16-byte asynchronous",
        "copies. `table.json` has sm_80 and sm_100 as well.",
    ]
    for version, part in sorted(table.items()):
        text += ["", f"## Triton {version}", ""]
        text += ["| problem | tile | warps | registers | stack | shared | instructions | HGMMA | wide |"]
        text += ["|---|---|---|---|---|---|---|---|---|"]
        for name, row in sorted(part["rows"]["90"].items()):
            cells = [
                name,
                row["tile"],
                row["warps"],
                row["registers"],
                row["stack"],
                row["shared"],
                row["instructions"],
            ]
            cells += [row["counts"].get("HGMMA", 0), row["wide_async"]]
            text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"


def _stale(part: dict[str, Any]) -> list[tuple[str, int]]:
    """Return the entries whose row in `part` is missing, or of another source or configuration."""
    hashes = source_hashes()
    changed = {module for module in MODULES if part["sources"].get(module) != hashes[module]}
    jobs = []
    for name, problem in _ENTRIES.items():
        planned = _planned(launch(name, problem)[1])
        for arch in ARCHITECTURES:
            row = part["rows"].get(str(arch), {}).get(name, {})
            if MODULE_OF[problem.kind] in changed or not planned.items() <= row.items():
                jobs.append((name, arch))
    return jobs


def refresh(everything: bool) -> None:
    """Recompile with the installed Triton what changed, or everything, and rewrite the table and its page."""
    table = load()
    old = {"sources": {}, "rows": {}} if everything else table.get(VERSION, {"sources": {}, "rows": {}})
    jobs = _stale(old)
    kept = {str(arch): old["rows"].get(str(arch), {}) for arch in ARCHITECTURES}
    rows: dict[str, Rows] = {
        arch: {name: part[name] for name in _ENTRIES if name in part} for arch, part in kept.items()
    }
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done, (name, arch, row) in enumerate(pool.map(measure, jobs, chunksize=4), 1):
            rows[str(arch)][name] = row
            print(f"\r{done}/{len(jobs)}", end="", file=sys.stderr, flush=True)
    table[VERSION] = {"sources": source_hashes(), "rows": rows}
    _write(table)
    PAGE.write_text(_page(table))


if __name__ == "__main__":
    refresh("--all" in sys.argv[1:])
