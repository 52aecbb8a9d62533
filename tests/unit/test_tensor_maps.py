"""Tensor maps: their types as text, the boxes of one instruction, and what an index of a pack takes."""

from __future__ import annotations

import pytest

from gpuconv.launcher.layout import Parameter
from gpuconv.launcher.maps import MAP_BYTES, MapType, TensorMap, is_map, parse_map_type
from gpuconv.packs.identity import KernelReference, described, key_of

TYPES = [
    (MapType("bf16", (1, 128, 64), 128), "tma.bf16.1x128x64.128", (1, 128, 64)),
    (MapType("fp16", (1, 64, 256), 128), "tma.fp16.1x64x256.128", (1, 64, 64)),
    (MapType("tf32", (2, 1, 4, 16, 32), 128, 0), "tma.tf32.2x1x4x16x32.128.0", (1, 1, 4, 16, 32)),
    (MapType("fp32", (1, 1, 1, 128, 64), 128, 4), "tma.fp32.1x1x1x128x64.128.4", (1, 1, 1, 128, 32)),
    (MapType("bf16", (128, 32), 64, "all", 4), "im2col4.bf16.128x32.64.all", (128, 32)),
    (MapType("bf16", (64, 64), 128, None, 5), "im2col5.bf16.64x64.128", (64, 64)),
]


@pytest.mark.parametrize(("type", "text", "message"), TYPES, ids=[text for _, text, _ in TYPES])
def test_a_type_is_its_text(type: MapType, text: str, message: tuple[int, ...]) -> None:
    assert str(type) == text and parse_map_type(text) == type and is_map(text)
    assert type.message == message
    assert type.sizes == [MAP_BYTES, *[4] * type.rank, *[8] * type.rank]
    assert Parameter("x_map", text, True).sizes == type.sizes and Parameter("x_map", text, True).has_address


@pytest.mark.parametrize(
    "text",
    ["*bf16", "tma.bf16.1x128x64", "tma.int8.1x16.32", "tma.bf16.0x64.128", "tma.bf16.1x64.96", "tma.bf16.1x64.128.2",
     "im2col2.bf16.64x64.128", "im2col4.bf16.1x64x64.128", "tma.bf16.1x64.128.both", "tma.bf16.1x64.128\n"],
)  # fmt: skip
def test_what_is_no_type_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no type of a tensor map"):
        parse_map_type(text)


def test_scalars_follow_the_map() -> None:
    map = TensorMap(None, TYPES[0][0], (9, 256, 64), (64, 576, 1))
    sizes = [size.to_bytes(4, "little") for size in (9, 256, 64)]
    assert map.scalars() == sizes + [step.to_bytes(8, "little") for step in (64, 576, 1)]


def test_hopper_kernels_are_known_by_types_alone() -> None:
    """One binary serves all sizes and alignments; other kernels are specialised."""
    map = TensorMap(None, TYPES[0][0], (9, 256, 64), (64, 576, 1))
    larger = TensorMap(None, TYPES[0][0], (25, 512, 128), (128, 3200, 1))
    hopper, other = KernelReference("hopper.tiles", "_k"), KernelReference("conv.fprop", "_k")
    options = {"num_warps": 4}
    for kernel, same in ((hopper, True), (other, False)):
        one = key_of(kernel, {"x_map": map, "n": 1, "c": 64}, options)[0]
        assert (one == key_of(kernel, {"x_map": larger, "n": 7, "c": 63}, options)[0]) == same
    assert described("x_map", map) == ["tma.bf16.1x128x64.128", False]
    assert described("n", 1, one_binary=True) == ["i32", False] and described("n", 1) == ["constexpr", 1]
    assert described("n", 2**40, one_binary=True) == ["i64", False]
