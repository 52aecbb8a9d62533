"""Inductor and Dynamo take seconds for each variant: the gate takes half of those of the longest tests."""

from __future__ import annotations

import os
from collections import Counter

HALVED = {
    "test_every_function",
    "test_five_new_shapes_compile_nothing_new",
    "test_inductor",
    "test_new_shapes_compile_nothing_new",
    "test_new_sizes_compile_nothing_new",
    "test_reloaded_in_a_fresh_process",
}
"""Of two variants in two ways the first of both and the second of both, so that each variant is there."""


def pytest_collection_modifyitems(config, items):
    if os.environ.get("GPUCONV_TEST_FULL") == "1":
        return
    seen, kept, left_out = Counter(), [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        place = seen[test]
        seen[test] += 1
        halved = "tests/compile/" in test and item.originalname in HALVED
        (left_out if halved and place.bit_count() % 2 else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)
