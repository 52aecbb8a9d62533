"""The codegen table: what each kernel compiles to, per Triton version and GPU architecture.

``python tests/codegen/table.py`` recompiles every entry whose kernel or launch changed (``--all``: every entry) and
rewrites ``table.json`` and the page ``TABLE.md``, with the installed Triton and then with that of the repository's
other environment (``--triton-only current``: not with that). The test lane checks the committed rows against budgets,
and recompiles a sample of them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import triton
from aot import compile_for, fprop_pass_arguments, launch_arguments, signature_of, specialise, sum_arguments
from loops import TENSOR_CORE, occupancy
from problems import awkward_problems, fprop_pass_problems, gradient_problems, transposed_problems, workload_problems
from rows import Rows, markdown, slashed
from rows import load as load_table
from rows import write as write_table

from gpuconv.backends.triton.common import launch_options
from gpuconv.backends.triton.conv_fprop import FpropImplicitGemm
from gpuconv.backends.triton.conv_grad import DgradImplicitGemm, WgradSplitK
from gpuconv.kernels.tl import common
from gpuconv.kernels.tl.conv import dgrad, fprop, wgrad
from gpuconv.problem import ConvProblem

HERE = Path(__file__).parent
REPO = HERE.parents[1]
TABLE = HERE / "table.json"
PAGE = HERE / "TABLE.md"
ARCHITECTURES = (80, 90, 100)
VERSION = triton.__version__
MODULES = {"conv_fprop": fprop, "conv_dgrad": dgrad, "conv_wgrad": wgrad}
MODULE_OF = {"fprop": "conv_fprop", "dgrad": "conv_dgrad", "transposed": "conv_dgrad", "wgrad": "conv_wgrad"}
SOLVERS = {
    "fprop": FpropImplicitGemm(),
    "dgrad": DgradImplicitGemm(),
    "transposed": DgradImplicitGemm(),
    "wgrad": WgradSplitK(),
}

PASSES = ("fprop_pack", "fprop_sum", "wgrad_sum")
"""First words of the entries that stand for a small pass before or after the GEMM of their problem."""


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
        return specialise(wgrad._conv_wgrad_sum_kernel, arguments), config
    if small_pass(name):
        arguments = fprop_pass_arguments(small_pass(name), problem, config)
        tile = [arguments[side] for side in arguments if side.startswith("BLOCK_")]
        config = {"BLOCK_M": tile[0], "BLOCK_N": tile[1], "BLOCK_K": 1, "num_warps": 4, "num_stages": 3}
        return specialise(getattr(fprop, f"_conv_{small_pass(name)}_kernel"), arguments), config
    kernel = {
        "conv_fprop": fprop._conv_fprop_implicit_gemm_kernel,
        "conv_dgrad": dgrad._conv_dgrad_implicit_gemm_kernel,
        "conv_wgrad": wgrad._conv_wgrad_split_k_kernel,
    }[MODULE_OF[problem.kind]]
    return specialise(kernel, launch_arguments(problem, config)), config


def kind_of_launch(problem: ConvProblem, source: Any, config: dict[str, Any]) -> tuple[Any, ...]:
    """Return what of a launch changes the code that is generated, beyond constants and a few instructions.

    That is all that the JIT specialises for, less what only enters divisions and bounds: sizes of axes, pads and
    numbers of tiles that happen to be 1 or multiples of 16, how far taps are apart and how many there are along an axis
    (where stride phases or single channels do not unroll loops over them). Strides of a tensor count together, as its
    loads need all of them, but that of the channel, which says whether channels are innermost.
    """
    names = source.fn.arg_names
    multiples = {names[place] for (place,) in source.attrs}
    kind: list[Any] = [source.fn.__name__, *launch_options(config).values(), config.get("packed")]
    of_tensor: dict[str, bool] = {}
    phases = problem.kind in ("dgrad", "transposed") and max(problem.stride) > 1
    one_loop = problem.kind == "wgrad"  # whatever the taps
    unrolled = not one_loop and (phases or problem.groups in (problem.c, problem.k))
    for name in names:
        value, kind_of_value = source.constants.get((names.index(name),)), source.signature[name]
        if name.startswith(("DILATION", "STRIDE")) and not phases:
            kind.append(min(value, 2))
        elif name in ("T", "R", "S") and not unrolled:
            kind.append(max(problem.kernel) > 1 if one_loop else min(value, 2))
        elif name.isupper() or name.endswith("_ptr"):
            kind.append((name, kind_of_value, str(value)))
        elif name in ("c_per_group", "k_per_group") or name.endswith(("stride_c", "stride_k")):
            kind.append((name, kind_of_value, name in multiples))
        elif "_stride_" in name:
            tensor = name.partition("_")[0]
            of_tensor[tensor] = of_tensor.get(tensor, True) and name in multiples
            kind.append(kind_of_value == "i64")
    return *kind, *sorted(of_tensor.items())


def entries() -> dict[str, ConvProblem]:
    """Return the problems of which each stands for a kind of launch, by name. See :func:`kind_of_launch`."""
    seen: dict[tuple[Any, ...], tuple[str, ConvProblem]] = {}
    forward = (*awkward_problems(), *workload_problems(), *fprop_pass_problems())
    for name, problem in (*forward, *transposed_problems(), *gradient_problems()):
        seen.setdefault(kind_of_launch(problem, *launch(name, problem)), (name, problem))
    return dict(seen.values())


def measure(job: tuple[str, int]) -> tuple[str, int, dict[str, Any]]:
    """Compile entry `job` (its name and an architecture) and return its row."""
    name, capability = job
    source, config = launch(name, ENTRIES[name])
    return name, capability, planned(name) | compile_for(source, capability, config)


def planned(name: str) -> dict[str, Any]:
    """Return the part of a row that the plan decides."""
    source, config = launch(name, ENTRIES[name])
    tile = "x".join(str(config[side]) for side in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    signature = signature_of(source, config)
    return {"signature": signature, "tile": tile, "warps": config["num_warps"], "stages": config["num_stages"]}


ENTRIES = entries()


def load() -> dict[str, Any]:
    """Return the committed table: version -> {"sources": {kernel: hash}, "rows": {architecture: {name: row}}}."""
    return load_table(TABLE)


def _write(table: dict[str, Any]) -> None:
    write_table(TABLE, table)
    PAGE.write_text(page(table))


def page(table: dict[str, Any]) -> str:
    """Render the table as Markdown: one line per entry, with a value for each architecture."""
    each = " / ".join(f"sm_{arch}" for arch in ARCHITECTURES)
    text = [
        "# Codegen table",
        "",
        "What each kernel compiles to, without a GPU: `make codegen` makes this page and `table.json`.",
        f"Cells with slashes are {each}; one number stands for all of them.",
        "Rows without a kernel in front are of the forward one. Registers and stack are per thread, shared memory in",
        "bytes per block; `blocks` is how many fit on a multiprocessor; `loop` is the number of instructions of the",
        "hot loop, the one that multiplies most per instruction (0: none multiplies or loads); `products` counts the",
        "instructions of the tensor cores (HMMA, HGMMA, UTCHMMA, DMMA), `copies` LDGSTS and in brackets the 16-byte",
        "ones of these, `TMA` UTMALDG, `STSM` stores of matrices to shared memory; `trips` counts values that change",
        "their layout inside a loop.",
    ]
    names = ("tile", "warps", "registers", "stack", "shared", "blocks", "loop", "products", "copies", "TMA", "STSM")
    for version, part in sorted(table.items()):
        text += ["", f"## Triton {version}", ""]
        lines = []
        for name in sorted(part["rows"].get("90", {})):
            cells = [_cells(arch, part["rows"][str(arch)][name]) for arch in ARCHITECTURES]
            lines.append([name, *map(slashed, zip(*cells, strict=True))])
        text += markdown(["problem", *names, "trips"], lines)
    return "\n".join(text) + "\n"


def _cells(arch: int, row: dict[str, Any]) -> list[Any]:
    """Return the cells of one architecture in the order of the page's columns."""
    counts = row["counts"]
    products = sum(counts.get(name, 0) for name in TENSOR_CORE)
    cells = [row[name] for name in ("tile", "warps", "registers", "stack", "shared")]
    cells += [occupancy(row, arch), row["hot_loop"], products, f"{counts.get('LDGSTS', 0)} ({row['wide_async']})"]
    return [*cells, counts.get("UTMALDG", 0), counts.get("STSM", 0), row["round_trips"]]


def _reusable(part: dict[str, Any]) -> dict[str, Rows]:
    """Return the rows that a compilation would give again, under the names of today: same source, same signature."""
    hashes, found = source_hashes(), {str(arch): Rows() for arch in ARCHITECTURES}
    expected = {name: planned(name) for name in ENTRIES}
    for arch, rows in found.items():
        old = part["rows"].get(arch, {})
        by_signature = {row["signature"]: row for row in old.values() if "signature" in row}
        for name, problem in ENTRIES.items():
            module = MODULE_OF[problem.kind]
            row = by_signature.get(expected[name]["signature"])
            if (
                row is not None
                and part["sources"].get(module) == hashes[module]
                and expected[name].items() <= row.items()
            ):
                rows[name] = row
    return found


def refresh(everything: bool, workers: int | None = None) -> None:
    """Recompile with the installed Triton what changed, or everything, and rewrite the table and its page.

    What was compiled is kept when an interruption or a failure ends this.
    """
    table = load()
    empty = {"sources": {}, "rows": {}}
    rows = _reusable(empty if everything else table.get(VERSION, empty))
    jobs = [(name, arch) for arch in ARCHITECTURES for name in ENTRIES if name not in rows[str(arch)]]
    total = len(ENTRIES) * len(ARCHITECTURES)
    print(f"triton {VERSION}: {len(ENTRIES)} entries, {total - len(jobs)} rows kept, {len(jobs)} to compile")
    table[VERSION] = {"sources": source_hashes(), "rows": rows}
    try:
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            for done, (name, arch, row) in enumerate(pool.map(measure, jobs, chunksize=4), 1):
                rows[str(arch)][name] = row
                print(f"\r{done}/{len(jobs)}", end="", file=sys.stderr, flush=True)
    finally:
        _write(table)


def _elsewhere() -> list[Path]:
    """Return the interpreters of the repository's environments that may have another Triton."""
    pythons = [REPO / folder / "bin" / "python" for folder in (".venv", ".venv-triton36")]
    return [python for python in pythons if python.exists() and python.parent.parent != Path(sys.prefix)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Refresh the codegen table.")
    parser.add_argument("--all", action="store_true", help="recompile every entry, not those that changed alone")
    parser.add_argument("--triton-only", choices=("current",), help="leave the rows of the other environment's Triton")
    parser.add_argument("--workers", type=int, help="processes that compile; default: one for each core")
    arguments = parser.parse_args()
    refresh(arguments.all, arguments.workers)
    for python in [] if arguments.triton_only else _elsewhere():
        command = [str(python), __file__, "--triton-only", "current", *(["--all"] if arguments.all else [])]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(REPO)})


if __name__ == "__main__":
    main()
