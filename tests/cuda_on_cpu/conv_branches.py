"""What the cases of the convolution kernels differ in, by kernel family. Values in a dict are by number of dims."""

from __future__ import annotations

from typing import Any

Branches = dict[str, dict[str, Any]]

_FEW = (("float32", "plain"), ("float16", "tensor"), ("float64", "plain"), ("bfloat16", "tensor"))
_TENSOR = (("float16", "tensor"), ("bfloat16", "tensor"))
_PLAIN = (("float32", "plain"), ("float16", "plain"))  # the data gradient has no 64-bit kernel on tensor cores
_LAST = ("channels_last",)

CHANNELS: dict[str, tuple[Any, Any]] = {
    "fprop": ({1: 25, 2: 9, 3: 9}, 70),
    "dgrad": (70, {1: 25, 2: 9, 3: 9}),
    "transposed": (70, {1: 25, 2: 9, 3: 9}),
    "wgrad": ({1: 25, 2: 9, 3: 9}, 70),
    "fprop depthwise": (5, 10),
    "dgrad depthwise": (5, 10),
    "transposed depthwise": (5, 10),
}
"""C and K where a branch says nothing."""

SIZES: dict[str, dict[int, Any]] = {
    "fprop": {1: 40, 2: (8, 7), 3: (4, 5, 5)},
    "dgrad": {1: 40, 2: (7, 6), 3: (4, 4, 5)},
    "transposed": {1: 40, 2: (7, 6), 3: (4, 4, 5)},
    "wgrad": {1: 60, 2: (8, 9), 3: (5, 6, 6)},
    "fprop depthwise": {1: 70, 2: (9, 11), 3: (4, 5, 7)},
    "dgrad depthwise": {1: 70, 2: (9, 11), 3: (4, 5, 7)},
    "transposed depthwise": {1: 70, 2: (9, 11), 3: (4, 5, 7)},
}

_FPROP: Branches = {
    "plain": {},
    "strided": {"stride": 2, "dilation": 2, "pads": (2, 3), "size": {1: 80, 2: (15, 13), 3: (8, 7, 9)}, "n": 2},
    "stride over kernel": {
        "stride": 4, "kernel": 2, "pads": (0, 1), "size": {1: 150, 2: (25, 21), 3: (9, 13, 13)}, "n": 2,
        "c": {1: 49, 2: 25, 3: 13},
    },
    "grouped": {"groups": 3, "c": {1: 75, 2: 27, 3: 27}, "k": 51, "bias": True, "pads": (1, 0)},
    "one channel a group": {
        "groups": 3, "c": 3, "k": 6, "kernel": {1: 70, 2: 9, 3: 5}, "pads": {1: (40, 36), 2: (4, 5), 3: (2, 3)},
    },
    "epilogue": {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "gelu"},
    "relu": {"activation": "relu", "residual": True, "pads": (1, 0)},
    "relu6 hardswish": {"activation": "relu6", "bias": True, "pads": (1, 1)},
    "hardswish": {"activation": "hardswish", "bias": True},
    "silu": {"activation": "silu", "scale": True, "shift": True},
    "sigmoid": {"activation": "sigmoid", "bias": True, "kernel": 1, "c": 80},
    "tanh": {"activation": "tanh", "scale": True, "pads": (1, 1)},
    "gelu tanh": {"activation": "gelu_tanh", "residual": True, "bias": True},
    "kernel over input": {
        "size": {1: 7, 2: (3, 4), 3: 2}, "kernel": {1: 11, 2: 5, 3: 3}, "pads": {1: (9, 9), 2: (3, 2), 3: (1, 1)},
        "n": {1: 6, 2: 8, 3: 9}, "c": 9,
    },
    "reflect": {"padding_mode": "reflect", "pads": {1: (2, 3), 2: (2, 1), 3: (1, 1)}, "n": 3, "cores": _FEW},
    "replicate": {"padding_mode": "replicate", "pads": (1, 4), "stride": 2, "n": 4, "cores": _FEW},
    "circular": {"padding_mode": "circular", "pads": {1: (3, 2), 2: (1, 2), 3: (1, 1)}, "n": 3, "cores": _FEW},
    "circular twice": {
        "padding_mode": "circular", "size": {1: 5, 2: (5, 4), 3: 2}, "pads": {1: (13, 17), 2: (7, 9), 3: (3, 4)},
        "stride": {1: 1, 2: 2, 3: 2}, "n": 3, "cores": _FEW, "groups": 2, "c": 10, "k": 20,
    },
    "64-bit": {"index64": True, "pads": (0, 1), "n": 3, "cores": _FEW[:2]},
    "64-bit grouped": {
        "index64": True, "groups": 2, "c": 18, "k": 70, "padding_mode": "replicate", "pads": (0, 1), "n": 3,
        "cores": _FEW[:2],
    },
    "one by one": {"kernel": 1, "c": 80},
    "one by one strided": {"kernel": 1, "c": 80, "stride": 2, "size": {1: 150, 2: (17, 15), 3: (7, 8, 9)}},
    "vectors": {"c": {1: 48, 2: 16, 3: 16}, "k": 72, "pads": (1, 0), "cores": _TENSOR, "layouts": _LAST, "bias": True},
    "vectors grouped strided": {
        "c": {1: 96, 2: 24, 3: 24}, "groups": 3, "k": 72, "stride": 2, "pads": (1, 2), "cores": _TENSOR,
        "layouts": _LAST, "size": {1: 80, 2: (13, 12), 3: (6, 8, 7)},
    },
    "large tile": {
        "tile": "large", "cores": (("float32", "plain"), *_TENSOR), "layouts": ("channels_last", "contiguous"),
        "c": {1: 48, 2: 16, 3: 8}, "k": 136, "size": {1: 150, 2: (13, 11), 3: (5, 6, 5)}, "pads": (1, 1),
        "residual": True,
    },
    "medium tile": {
        "tile": "medium", "cores": (("float32", "plain"), *_TENSOR), "layouts": ("channels_last", "contiguous"),
        "c": {1: 48, 2: 16, 3: 8}, "k": 72, "size": {1: 80, 2: (11, 9), 3: (5, 6, 5)}, "pads": (1, 1), "bias": True,
    },
}  # fmt: skip

_PHASES: Branches = {
    "stride 1": {"pads": (1, 0)},
    "stride 2": {"stride": 2, "pads": (1, 1), "size": {1: 140, 2: (17, 15), 3: (8, 9, 8)}},
    "stride 3": {
        "stride": {1: 3, 2: (3, 2), 3: (1, 3, 2)}, "pads": (2, 0), "size": {1: 110, 2: (16, 13), 3: (4, 9, 8)},
    },
    "stride 2 dilation 2": {"stride": 2, "dilation": 2, "pads": (2, 1), "size": {1: 140, 2: (17, 15), 3: (8, 9, 8)}},
    "stride 2 dilation 3": {"stride": 2, "dilation": 3, "pads": (3, 2), "size": {1: 140, 2: (17, 15), 3: (8, 9, 8)}},
    "stride 3 dilation 2": {
        "stride": {1: 3, 2: (3, 1), 3: (3, 1, 2)}, "dilation": 2, "pads": (1, 3),
        "size": {1: 110, 2: (16, 7), 3: (9, 4, 7)},
    },
    "stride 4 dilation 2": {
        "stride": {1: 4, 2: (4, 2), 3: (1, 4, 2)}, "dilation": {1: 2, 2: (2, 1), 3: (1, 2, 2)}, "pads": (3, 4),
        "size": {1: 140, 2: (21, 11), 3: (4, 12, 6)},
    },
    "stride 4 dilation 6": {
        "stride": {1: 4, 2: (2, 4), 3: (2, 4, 1)}, "dilation": {1: 6, 2: (3, 6), 3: (3, 6, 2)}, "pads": (5, 7),
        "size": {1: 140, 2: (11, 21), 3: (5, 12, 4)},
    },
    "stride over kernel": {
        "stride": {1: 5, 2: (3, 4), 3: (3, 1, 4)}, "kernel": 2, "pads": (0, 1),
        "size": {1: 173, 2: (17, 25), 3: (8, 4, 13)}, "k": {1: 40, 2: 40, 3: 13}, "bias": True,
    },
    "grouped": {"groups": 3, "c": 51, "k": {1: 75, 2: 27, 3: 27}, "pads": (1, 0), "bias": True},
    "grouped stride 2": {
        "groups": 2, "c": 74, "k": {1: 50, 2: 18, 3: 18}, "stride": 2, "pads": (0, 1),
        "size": {1: 140, 2: (17, 15), 3: (8, 9, 8)},
    },
    "one channel a group": {"groups": 3, "c": 3, "k": 75, "pads": (1, 1), "bias": True},
    "kernel over input": {
        "size": {1: 7, 2: 4, 3: 2}, "kernel": {1: 11, 2: 5, 3: 3}, "pads": {1: (9, 9), 2: (3, 2), 3: (1, 1)},
        "n": {1: 11, 2: 5, 3: 9}, "c": 35, "k": 9,
    },
    "64-bit": {"index64": True, "stride": {1: 2, 2: (1, 2), 3: 1}, "pads": (0, 1), "n": 2, "cores": _PLAIN},
    "one by one": {"kernel": 1, "k": 80},
    "one by one stride 2": {
        "kernel": 1, "k": 80, "stride": 2, "size": {1: 140, 2: (17, 15), 3: (8, 9, 8)}, "bias": True,
    },
    "wide stride": {
        "stride": {1: 9, 2: (9, 1), 3: (9, 1, 1)}, "size": {1: 40, 2: (12, 6), 3: (11, 3, 3)}, "n": 4, "c": 3, "k": 27,
        "groups": 3,
    },
    "vectors": {"k": {1: 48, 2: 16, 3: 16}, "c": 72, "pads": (1, 0), "cores": _TENSOR, "layouts": _LAST, "bias": True},
    "vectors grouped strided": {
        "k": {1: 96, 2: 24, 3: 24}, "groups": 3, "c": 72, "stride": 2, "pads": (1, 2), "cores": _TENSOR,
        "layouts": _LAST, "size": {1: 140, 2: (13, 12), 3: (6, 8, 7)},
    },
    "large tile": {
        "tile": "large", "cores": (("float32", "plain"), *_TENSOR), "layouts": ("channels_last", "contiguous"),
        "k": {1: 48, 2: 16, 3: 8}, "c": 136, "size": {1: 150, 2: (13, 11), 3: (5, 6, 5)}, "pads": (1, 1),
        "residual": True,
    },
    "medium tile": {
        "tile": "medium", "cores": (("float32", "plain"), *_TENSOR), "layouts": ("channels_last", "contiguous"),
        "k": {1: 48, 2: 16, 3: 8}, "c": 72, "size": {1: 80, 2: (11, 9), 3: (5, 6, 5)}, "pads": (1, 1), "bias": True,
    },
}  # fmt: skip

_ROWS: Branches = {
    f"row of {taps} stride {stride}": {
        "kernel": {1: taps, 2: (2, taps), 3: (1, 2, taps)}, "stride": {1: stride, 2: (1, stride), 3: (1, 2, stride)},
        "pads": {1: (1, taps), 2: ((1, 0), (2, 1)), 3: ((0, 1), (1, 1), (2, 3))}, "bias": taps == 5,
    }
    for taps, stride in ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1))
}  # fmt: skip

_DEPTHWISE_GRAD: Branches = {
    **{name: {**branch, "stride": 1} for name, branch in _ROWS.items() if name.endswith("stride 1")},
    "any row": {"kernel": {1: 4, 2: (3, 4), 3: (2, 2, 4)}, "pads": (1, 2)},
    "dilated": {"dilation": 3, "pads": (3, 2), "size": {1: 70, 2: (12, 13), 3: (6, 7, 8)}},
    "more padding than taps": {"pads": (5, 4)},
    "even multiplier": {"c": 3, "k": 12, "pads": (1, 1)},
    "multiplier 1": {"c": 130, "k": 130, "pads": (1, 1), "size": {1: 20, 2: 5, 3: 3}},
    "64-bit": {"index64": True, "pads": (1, 0)},
}  # fmt: skip

BRANCHES: dict[str, Branches] = {
    "fprop": _FPROP,
    "dgrad": {name: branch for name, branch in _PHASES.items()} | {
        "reflect": {
            "padding_mode": "reflect", "pads": {1: (2, 3), 2: ((2, 1), (0, 1)), 3: ((1, 1), (0, 1), (0, 0))}, "n": 3,
            "cores": _FEW,
        },
        "reflect stride 2": {
            "padding_mode": "reflect", "stride": 2, "size": {1: 140, 2: (17, 15), 3: (8, 9, 8)}, "cores": _FEW,
            "pads": {1: (5, 3), 2: ((1, 2), (0, 1)), 3: ((0, 1), (0, 0), (2, 1))},
        },
        "replicate": {
            "padding_mode": "replicate", "pads": {1: (1, 4), 2: ((1, 2), (1, 0)), 3: (1, 0)},
            "stride": {1: 2, 2: 1, 3: 1}, "cores": _FEW, "size": {1: 140, 2: (8, 9), 3: (4, 4, 5)},
        },
        "replicate dilated": {
            "padding_mode": "replicate", "pads": {1: (5, 4), 2: ((2, 1), (0, 1)), 3: ((1, 1), (0, 0), (1, 1))},
            "stride": {1: 4, 2: (2, 1), 3: (2, 1, 1)}, "dilation": {1: 6, 2: 2, 3: 2},
            "size": {1: 140, 2: (11, 7), 3: (5, 3, 4)}, "cores": _FEW,
        },
        "circular": {
            "padding_mode": "circular", "pads": {1: (3, 2), 2: (1, 2), 3: ((1, 1), (1, 0), (0, 0))}, "n": 3,
            "cores": _FEW,
        },
        "circular twice": {
            "padding_mode": "circular", "size": {1: 5, 2: (5, 4), 3: (2, 3, 2)},
            "pads": {1: (13, 17), 2: ((7, 9), (0, 1)), 3: ((0, 0), (0, 1), (3, 4))},
            "stride": {1: 1, 2: 2, 3: (1, 1, 2)}, "n": 6, "c": 20, "groups": 2, "k": 10, "cores": _FEW,
        },
        "64-bit circular": {
            "index64": True, "padding_mode": "circular", "pads": (0, 1), "groups": 2, "c": 36, "k": 74,
            "cores": _PLAIN,
        },
    },
    "transposed": _PHASES | {
        "epilogue": {
            "bias": True, "scale": True, "shift": True, "residual": True, "activation": "gelu", "stride": 2,
            "pads": (1, 1), "size": {1: 140, 2: (17, 15), 3: (8, 9, 8)},
        },
        "relu": {"activation": "relu", "residual": True, "pads": (1, 0)},
        "silu without taps": {
            "activation": "silu", "scale": True, "shift": True, "stride": {1: 4, 2: (1, 4), 3: (1, 4, 1)}, "kernel": 2,
            "k": 20, "size": {1: 140, 2: (6, 24), 3: (3, 13, 3)},
        },
    },
    "wgrad": {
        "plain": {"pads": (1, 0)},
        "one split": {"splits": 1, "pads": (0, 1), "bias": True},
        "bias": {"bias": True},
        "seven splits": {"bias": True, "splits": 7},
        "strided": {
            "bias": True, "stride": 2, "dilation": 2, "pads": (2, 3), "size": {1: 120, 2: (16, 17), 3: (9, 10, 9)},
        },
        "stride over kernel": {
            "stride": 4, "kernel": 2, "pads": (0, 1), "size": {1: 190, 2: (30, 31), 3: (13, 17, 17)},
            "c": {1: 49, 2: 25, 3: 13},
        },
        "stride 3 dilation 2": {
            "stride": 3, "dilation": 2, "pads": (1, 3), "size": {1: 150, 2: (24, 23), 3: (11, 12, 12)},
        },
        "grouped": {"groups": 3, "c": {1: 75, 2: 27, 3: 27}, "k": 102, "pads": (1, 0), "bias": True},
        "grouped, one split": {
            "groups": 3, "c": {1: 75, 2: 27, 3: 27}, "k": 102, "pads": (1, 0), "splits": 1, "bias": True,
        },
        "one channel a group": {
            "bias": True, "groups": 3, "c": 3, "k": 105, "kernel": {1: 70, 2: 9, 3: 5},
            "pads": {1: (40, 36), 2: (4, 4), 3: (2, 2)},
        },
        "kernel over input": {
            "size": {1: 9, 2: 4, 3: 2}, "kernel": {1: 15, 2: 7, 3: 3}, "pads": {1: (9, 9), 2: (5, 3), 3: (2, 1)},
            "n": {1: 6, 2: 3, 3: 4}, "c": {1: 5, 2: 2, 3: 3}, "bias": True,
        },
        "reflect": {"padding_mode": "reflect", "pads": {1: (2, 3), 2: (2, 1), 3: (1, 1)}, "cores": _FEW},
        "replicate": {
            "padding_mode": "replicate", "pads": (1, 4), "stride": 2, "size": {1: 120, 2: (16, 15), 3: (8, 9, 9)},
            "cores": _FEW, "bias": True,
        },
        "circular": {"padding_mode": "circular", "pads": {1: (3, 2), 2: (1, 2), 3: (1, 1)}, "cores": _FEW},
        "circular twice": {
            "padding_mode": "circular", "size": {1: 5, 2: (5, 4), 3: 2}, "pads": {1: (13, 17), 2: (7, 9), 3: (3, 4)},
            "stride": {1: 1, 2: (2, 1), 3: (2, 1, 1)}, "n": 3, "cores": _FEW,
        },
        "64-bit": {"index64": True, "pads": (0, 1), "bias": True, "cores": _FEW[:2]},
        "64-bit, one split": {
            "index64": True, "groups": 2, "c": 18, "k": 70, "padding_mode": "replicate", "splits": 1, "bias": True,
            "pads": (1, 1), "cores": _FEW[:2],
        },
        "one by one": {"kernel": 1, "c": 80, "bias": True},
        "one by one strided": {"kernel": 1, "c": 80, "stride": 2, "size": {1: 120, 2: (17, 15), 3: (8, 9, 9)}},
        "vectors": {
            "c": {1: 48, 2: 16, 3: 16}, "k": 72, "pads": (1, 0), "bias": True, "cores": _TENSOR, "layouts": _LAST,
        },
        "vectors grouped strided": {
            "c": {1: 96, 2: 24, 3: 24}, "groups": 3, "k": 72, "stride": 2, "pads": (1, 2), "cores": _TENSOR,
            "layouts": _LAST, "size": {1: 120, 2: (16, 15), 3: (9, 8, 10)},
        },
        "large tile": {
            "tile": "large", "cores": (("float32", "plain"), *_TENSOR), "layouts": ("channels_last", "contiguous"),
            "c": {1: 48, 2: 16, 3: 24}, "k": 136, "pads": (1, 1), "bias": True,
        },
        "medium tile": {
            "tile": "medium", "cores": (("float32", "plain"), *_TENSOR), "layouts": ("channels_last", "contiguous"),
            "c": {1: 48, 2: 16, 3: 24}, "k": 72, "pads": (1, 1), "splits": 2,
        },
    },
    "fprop depthwise": _ROWS | {
        "any row": {"kernel": {1: 4, 2: (3, 4), 3: (2, 2, 4)}, "stride": {1: 3, 2: 2, 3: (2, 1, 2)}, "pads": (1, 2)},
        "dilated": {"dilation": 3, "pads": (3, 2), "size": {1: 70, 2: (12, 13), 3: (6, 7, 8)}},
        "epilogue": {
            "bias": True, "scale": True, "shift": True, "residual": True, "activation": "gelu", "pads": (1, 1),
        },
        "relu": {"activation": "relu", "bias": True},
        "reflect": {"padding_mode": "reflect", "pads": {1: (2, 3), 2: (2, 1), 3: (1, 1)}},
        "replicate": {"padding_mode": "replicate", "pads": (1, 4), "stride": 2},
        "circular": {"padding_mode": "circular", "pads": {1: (3, 2), 2: (1, 2), 3: (1, 1)}},
        "multiplier 1": {"c": 130, "k": 130, "pads": (1, 1), "size": {1: 20, 2: 5, 3: 3}},
        "64-bit": {"index64": True, "pads": (1, 0), "stride": 2},
    },
    "dgrad depthwise": _DEPTHWISE_GRAD,
    "transposed depthwise": _DEPTHWISE_GRAD | {
        "epilogue": {
            "bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu", "pads": (1, 1),
        },
    },
}  # fmt: skip

for _family in ("fprop depthwise", "dgrad depthwise", "transposed depthwise"):
    for _branch in BRANCHES[_family].values():
        # One filter for each channel of x.
        _branch.setdefault("groups", _branch.get("c", 5))
        _branch.setdefault("cores", tuple((name, "plain") for name in ("float32", "float16", "float64", "bfloat16")))
