"""The suite must notice a broken kernel: each mutant of the depthwise kernels fails at least one case."""

from __future__ import annotations

import pytest
from depthwise_cases import Case, check_case
from mutants import mutant_module

from gpuconv.kernels.tl.conv import collect, march, splits

KERNELS = {
    march: ("_conv_march_last_kernel", "_conv_march_rows_kernel"),
    collect: ("_conv_collect_last_kernel", "_conv_collect_rows_kernel"),
    splits: ("_conv_sum_splits_kernel",),
}

FORWARD = (
    Case("fprop", 2, "channels_last", "float32", "stride 2"),
    Case("fprop", 2, "contiguous", "float32", "vectors"),
    Case("fprop", 2, "contiguous", "bfloat16", "dilated, stride 3"),
    Case("fprop", 3, "channels_last", "float32", "epilogue"),
    Case("fprop", 3, "contiguous", "float32", "multiplier"),
    Case("fprop", 2, "strided", "float32", "relu"),
)
BACKWARD = (
    Case("dgrad", 2, "channels_last", "float32", "stride 3"),
    Case("dgrad", 2, "contiguous", "float32", "vectors"),
    Case("dgrad", 3, "channels_last", "float32", "depth"),
    Case("dgrad", 3, "channels_last", "float32", "depth, shared divisor"),
    Case("dgrad", 3, "contiguous", "float32", "multiplier, stride 2"),
    Case("transposed", 2, "channels_last", "float32", "dilated, stride 3"),
)
WEIGHTS = (
    Case("wgrad", 2, "channels_last", "float32", "stride 2"),
    Case("wgrad", 2, "contiguous", "float32", "vectors"),
    Case("wgrad", 3, "contiguous", "float32", "multiplier"),
    Case("wgrad", 3, "channels_last", "float32", "depth"),
    Case("wgrad", 2, "contiguous", "bfloat16", "dilated, stride 3"),
)

MUTANTS = {
    "first warm row skipped": (
        "conv/march_lanes.py", "step = first + (i - WARM)", "step = first + (i - WARM + 1)", march,
    ),
    "closes rows of the chunk before": ("conv/march_lanes.py", "live & (step >= first) & ", "live & ", march),
    "columns of the result unbounded": (
        "conv/march_lanes.py", "& within(result_column + beside, result_width)", "",
        march,
    ),
    "rows of a gradient in the order of the forward pass": (
        "conv/march_lanes.py", "e if GRAD else A * (M - 1 - e) + j, z", "A * (M - 1 - e) + j, z", march,
    ),
    "window of a gradient not turned": (
        "conv/march_lanes.py", "columns[c + S - 1 - s - SHIFT]", "columns[c + s - SHIFT]", march,
    ),
    "taps between strides": ("conv/march_lanes.py", "if (c + LEAD - s) % UW == 0:", "if (c + LEAD) % UW == 0:", march),
    "lanes of a gradient that begin at the first source column": (
        "conv/march_lanes.py", "(c + LEAD - s) // UW - SHIFT", "(c - s) // UW - SHIFT", march,
    ),
    "slice of the weights": (
        "conv/march_lanes.py", "tap = w + (slices[SLICES + z] + r", "tap = w + (slices[z] + r",
        march,
    ),
    "residual of another column": ("conv/march_lanes.py", "+ beside * residual_stride_w", "+ beside", march),
    "scale before bias": (
        "conv/march_lanes.py",
        "stored(total + bias, ACTIVATION)\n    if scale is not None:\n        total = stored(total * scale,",
        "total\n    if scale is not None:\n        total = stored(total * scale + bias,",
        march,
    ),
    "rows of the source unbounded below": (
        "conv/lanes.py", "i.to(tl.uint32, bitcast=True) < size", "i < size", march,
    ),
    "depth of a gradient not exact": ("conv/lanes.py", " & (from_tap % STRIDE_D == 0)", "", march),
    "depth above the source": ("conv/lanes.py", "((i >= 0) & (i < depth),)", "(i >= 0,)", march),
    "vector of four out of order": (
        "conv/lanes.py", "tl.join(tl.join(columns[0], columns[2]), tl.join(columns[1], columns[3]))",
        "tl.join(tl.join(columns[0], columns[1]), tl.join(columns[2], columns[3]))", march,
    ),
    "every image the first": (
        "conv/march.py", " n = (pid // result_d).to(tl.int64)\n", " n = (pid // result_d * 0).to(tl.int64)\n", march,
    ),
    "window of y too short": ("conv/collect_lanes.py", "tl.static_range(1, M):", "tl.static_range(M, M):", collect),
    "tap of another row": ("conv/collect_lanes.py", "tap // S % R % A == j", "tap // S % R % A == 0", collect),
    "last step of a chunk twice": ("conv/collect_lanes.py", "step = first + (i + u)", "step = first + i", collect),
    "items of the split before": (
        "conv/collect.py", "items_per_split, items)\n    everywhere = (c",
        "items_per_split - 1, items)\n    everywhere = (c", collect,
    ),
    "splits beyond the last": ("conv/splits.py", "(first + split < splits)[:, None] & ", "", splits),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, monkeypatch, tmp_path):
    file, old, new, module = MUTANTS[name]
    broken = mutant_module(tmp_path, name, f"conv.{module.__name__.rpartition('.')[2]}", file, old, new)
    for kernel in KERNELS[module]:
        monkeypatch.setattr(module, kernel, getattr(broken, kernel))
    probes = FORWARD + BACKWARD if module is march else WEIGHTS
    for probe in probes:
        try:
            check_case(probe)
        except Exception:
            return
    pytest.fail(f"no probe noticed {name!r}")


@pytest.mark.parametrize("probe", FORWARD + BACKWARD + WEIGHTS, ids=lambda case: case.id)
def test_probes_pass_on_the_real_kernels(probe):
    check_case(probe)
