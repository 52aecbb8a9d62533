"""How long the first call of a process takes, part by part; one process per measurement, see ``host_overhead.py``.

python bench/first_call.py triton|pack      # prints milliseconds as JSON; what a pack has is in GPUCONV_PACKS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests" / "launch")]


def main(mode: str) -> dict[str, float]:
    """Return the milliseconds of importing torch and gpuconv, and of the first and second conv2d on a stub driver."""
    marks = [time.perf_counter()]
    import torch

    marks.append(time.perf_counter())
    import gpuconv

    marks.append(time.perf_counter())
    if mode == "pack":
        from stub_alone import stub
    else:
        from stub_gpu import stub_gpu as stub
    half = torch.zeros(2, 64, 14, 14, dtype=torch.float16).to(memory_format=torch.channels_last)
    weight = torch.zeros(64, 64, 3, 3, dtype=torch.float16).to(memory_format=torch.channels_last)
    with stub() as gpu, torch.no_grad():
        calls = [time.perf_counter()]
        for _ in range(2):
            gpuconv.conv2d(half, weight, padding=1)
            calls.append(time.perf_counter())
        launched = len(gpu.launches())
    assert launched == 2, launched
    assert ("triton" in sys.modules) == (mode == "triton"), "a pack's launch imports Triton"
    spans = {"import torch": marks[1] - marks[0], "import gpuconv": marks[2] - marks[1]}
    spans |= {"first call": calls[1] - calls[0], "second call": calls[2] - calls[1]}
    return {name: round(1e3 * seconds, 3) for name, seconds in spans.items()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
