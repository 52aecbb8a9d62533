"""No interleaving of the Hopper kernels' partitions does what it must not; and each fault that is planted is found."""

import inspect
import os
from dataclasses import replace

import numpy as np
import pytest
from hopper_cases import Case, Operands, execute, record
from prover import prove
from tensors import KernelError
from test_hopper import drawn, expected, weight_gradient

from gpuconv.kernels.tl.hopper import tiles

FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"

TILES = Case("tiles", n=1, channels=16, filters=32, size=(1, 4, 8), programs=1, stages=2)
STRIPS = Case(
    "strips",
    n=1,
    channels=16,
    filters=32,
    size=(1, 4, 8),
    taps=(1, 3, 1),
    padding=(0, 1, 0),
    tile=(1, 4, 8),
    programs=1,
)
PIXELS = Case("pixels", n=1, channels=16, filters=32, size=(1, 8, 8), tile=(1, 1, 32), programs=1, stages=2)
WGRAD = Case("wgrad", n=6, channels=16, filters=16, size=(1, 4, 8), tile=(1, 4, 8), splits=1, stages=3)
"""Two tiles each, or six boxes of pixels; all taps of one block of channels."""

SHARED = {
    "tiles-weights": replace(TILES, tile=(1, 4, 8), size=(1, 8, 8), shared="weights"),
    "tiles-pixels": replace(TILES, filters=64, block_k=32, shared="pixels"),
    "strips-weights": replace(STRIPS, tile=(1, 4, 16), size=(1, 4, 16), shared="weights", stages=2),
    "pixels-weights": replace(PIXELS, size=(1, 16, 8), tile=(1, 1, 64), shared="weights", rows=1),
    "pixels-pixels": replace(PIXELS, filters=64, block_k=32, shared="pixels", rows=1),
}
LONE = {"tiles": TILES, "strips": STRIPS, "pixels": PIXELS}


def proofs():
    for name, case in LONE.items():
        for stages in (2, 3, 4):
            yield pytest.param(replace(case, stages=stages), id=f"{name}-{stages}")
    yield pytest.param(replace(TILES, rows=3, size=(1, 6, 8)), id="tiles-three-consumers")
    yield pytest.param(replace(TILES, residual=True, chunks=2), id="tiles-residual")
    yield pytest.param(replace(STRIPS, rows=3, tile=(1, 6, 8), size=(1, 6, 8)), id="strips-three-consumers")
    yield pytest.param(replace(STRIPS, taps=(1, 3, 2), padding=(0, 1, 0), sets=3), id="strips-three-sets")
    yield pytest.param(WGRAD, id="wgrad-3")
    yield pytest.param(replace(WGRAD, stages=4), id="wgrad-4")
    yield pytest.param(replace(WGRAD, taps=(1, 2, 1), padding=(0, 1, 0), taps_at_once=2), id="wgrad-two-taps")
    yield pytest.param(replace(WGRAD, tile=(1, 1, 32), runs=True), id="wgrad-runs")
    for name, case in SHARED.items():
        if FULL or name != "strips-weights":  # which has the most states
            yield pytest.param(case, id=f"{name}-2")
        if FULL:
            yield pytest.param(replace(case, stages=3), id=f"{name}-3")


@pytest.mark.parametrize("case", list(proofs()))
def test_no_fault_is_reachable(case):
    assert prove(record(case)).together


def test_loads_that_land_alone_are_proved_too():
    """The search without its reduction finds no more."""
    for case in (replace(TILES, taps=(1, 2, 1), padding=(0, 1, 0), size=(1, 3, 8)), replace(WGRAD, n=4)):
        recorded = record(case)
        recorded.balances = lambda: False
        assert prove(recorded).states > prove(record(case)).states


TILES_PRODUCE, PIXELS_PRODUCE, STRIPS_PRODUCE = "_tiles_produce", "_pixels_produce", "_strips_produce"
CONSUME, STRIPS_CONSUME, STORE = "consume_tiles", "_strips_consume", "store_tile"
EMPTY = "mbarrier.wait(empty.index(slot), phase)"
WAIT_PAIR = "mbarrier.wait(pair.index(slot), phase)  # the first CTA alone: the slot of the other is free"
ARRIVE = "mbarrier.arrive(empty.index(last), count=1)"
ARRIVE_PAIR = "mbarrier.arrive(pair.index(last), count=1)"
WEIGHTS = "w_ring.index(slot), multicast=CLUSTER)"

FAULTS = {
    # what a pipeline may forget
    "producer does not wait": (TILES, [(TILES_PRODUCE, EMPTY, "pass")]),
    "producer starts in phase 0": (TILES, [(TILES_PRODUCE, "phase = 1", "phase = 0")]),
    "consumer does not wait": (TILES, [(CONSUME, "mbarrier.wait(full.index(slot), phase)", "pass")]),
    "two products in flight, one slot freed": (TILES, [(CONSUME, "mma_wait(1, deps", "mma_wait(2, deps")]),
    "slot freed as it is read": (
        TILES,
        [
            (
                CONSUME,
                "mbarrier.arrive(empty.index(last), count=1, pred=i > begin)",
                "mbarrier.arrive(empty.index(slot), count=1)",
            ),
            (CONSUME, f"{ARRIVE}\n        if CLUSTER", "pass\n        if CLUSTER"),
        ],
    ),
    "last slot of a tile never freed": (
        TILES,
        [(CONSUME, f"{ARRIVE}\n        if CLUSTER", "pass\n        if CLUSTER")],
    ),
    "sums read before the last products": (TILES, [(CONSUME, "sums = warpgroup_mma_wait(0, deps=[sums])", "pass")]),
    "one of two consumers counted": (
        TILES,
        [("multiply_tiles", "init(empty.index(i), count=CONSUMERS)", "init(empty.index(i), count=1)")],
    ),
    "bytes of x alone expected": (TILES, [(TILES_PRODUCE, " + w_map.nbytes_per_cta", "")]),
    "bytes of one box of two expected": (TILES, [(TILES_PRODUCE, "ROWS * COLUMNS * x_map.nbytes", "x_map.nbytes")]),
    # the way to memory
    "no fence before a store": (TILES, [(STORE, "fence_async_shared()", "pass")]),
    "staging written while it is stored": (
        replace(TILES, chunks=2),
        [(STORE, "tma.store_wait(0)  # what was stored last has been read", "pass")],
    ),
    "partition ends with a store": (TILES, [(CONSUME, "    tma.store_wait(0)", "    pass")]),
    "residual not waited for": (replace(TILES, residual=True), [(STORE, "mbarrier.wait(landed, parity)", "pass")]),
    "residual waited for in one phase alone": (
        replace(TILES, residual=True, chunks=2),
        [(STORE, "parity = parity ^ 1", "pass")],
    ),
    # clusters
    "first CTA does not wait for the other": (SHARED["tiles-weights"], [(TILES_PRODUCE, WAIT_PAIR, "pass")]),
    "other CTA does not wait for itself": (SHARED["tiles-weights"], [(TILES_PRODUCE, EMPTY, "pass")]),
    "pair told of all but the last slot": (
        SHARED["tiles-weights"],
        [(CONSUME, f"{ARRIVE_PAIR}\n        others", "pass\n        others")],
    ),
    "weights not multicast": (
        SHARED["tiles-weights"],
        [(TILES_PRODUCE, WEIGHTS, "w_ring.index(slot), multicast=False)")],
    ),
    "pair counts one CTA": (
        replace(SHARED["tiles-weights"], rows=2),
        [("multiply_tiles", "init(pair.index(i), count=CONSUMERS)", "init(pair.index(i), count=CONSUMERS // 2)")],
    ),
    # strips
    "strips freed a tap early": (
        replace(STRIPS, taps=(1, 3, 3), padding=(0, 1, 1), stages=4),
        [
            (
                STRIPS_CONSUME,
                "if j == 0:\n                    mbarrier.arrive(x_empty.index(last_set), count=1, pred=i > begin)",
                "if j == 2:\n                    mbarrier.arrive(x_empty.index(set_), count=1)",
            ),
            (
                STRIPS_CONSUME,
                "        mbarrier.arrive(x_empty.index(last_set), count=1)\n        others",
                "        others",
            ),
        ],
    ),
    "products of two taps in flight": (STRIPS, [(STRIPS_CONSUME, "mma_wait(LINES, ", "mma_wait(2 * LINES, ")]),
    "one strip fewer expected": (
        STRIPS,
        [(STRIPS_PRODUCE, "STRIPS * x_map.nbytes_per_cta", "(STRIPS - 1) * x_map.nbytes_per_cta")],
    ),
    "weights not waited for": (STRIPS, [(STRIPS_PRODUCE, "mbarrier.wait(w_empty.index(slot), phase)", "pass")]),
    "strips of a cluster: pair not waited for": (SHARED["strips-weights"], [(STRIPS_PRODUCE, WAIT_PAIR, "pass")]),
    # runs of pixels, weight gradient
    "pixels: producer does not wait": (PIXELS, [(PIXELS_PRODUCE, EMPTY, "pass")]),
    "pixels of a cluster: pair not waited for": (SHARED["pixels-pixels"], [(PIXELS_PRODUCE, WAIT_PAIR, "pass")]),
    "wgrad: two products in flight": (WGRAD, [("_wgrad_consume", "mma_wait(1, deps", "mma_wait(2, deps")]),
    "wgrad: producer does not wait": (WGRAD, [("_wgrad_produce", EMPTY, "pass")]),
    "wgrad: producer of runs does not wait": (
        replace(WGRAD, tile=(1, 1, 32), runs=True),
        [("_wgrad_produce_pixels", EMPTY, "pass")],
    ),
    "wgrad: products of two taps in flight": (
        replace(WGRAD, taps=(1, 2, 1), padding=(0, 1, 0), taps_at_once=2),
        [("_wgrad_consume", "mma_wait(TAPS, deps", "mma_wait(2 * TAPS, deps")],
    ),
}
"""What any order of events must not do: found by the search."""


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found_by_the_search(name):
    case, edits = FAULTS[name]
    with pytest.raises(KernelError):
        prove(record(case.planting(*edits)))


def test_an_arrival_at_a_cta_that_has_exited_is_found():
    """What Triton 3.8 compiles where the kernel does not wait for its peer."""
    record_of = record(SHARED["tiles-weights"].planting(("cluster_exit", "cluster.barrier()", "pass")))
    assert not record_of.exit_barrier
    with pytest.raises(KernelError, match="exited"):
        prove(record_of)


def test_products_of_what_was_written_without_a_fence_are_found():
    copy = "            pixels.store(pixels.load(LAYOUT))\n            if TRANSPOSED:"
    case = replace(TILES, taps=(1, 1, 1), padding=(0, 0, 0)).planting((CONSUME, "            if TRANSPOSED:", copy))
    with pytest.raises(KernelError, match="without fence"):
        prove(record(case))
    with pytest.raises(KernelError, match="without fence"):
        execute(case, 0, drawn(case, 0, integers=True))


def test_what_begins_and_ends_in_one_step_is_seen_by_others():
    """Two consumers store through one staging buffer, and each waits for its store at once."""
    stored = "        store_box_of_phase(y_maps, phase, at, staging, PHASES)\n"
    source = inspect.getsource(tiles.multiply_tiles.fn)
    start = source.index("elif CONSUMERS == 2")
    second = source[start : source.index("staging.index(1)", start) + len("staging.index(1)")]
    case = replace(TILES, taps=(1, 1, 1), padding=(0, 0, 0)).planting(
        ("multiply_tiles", second, second.replace("staging.index(1)", "staging.index(0)")),
        (STORE, stored, stored + "        tma.store_wait(0)\n"),
    )
    with pytest.raises(KernelError, match="still reads"):
        prove(record(case))


def test_a_cluster_barrier_before_the_partitions_is_none_at_the_exit():
    start = "    if CONSUMERS == 1:\n        gl.warp"
    case = replace(SHARED["tiles-weights"], taps=(1, 1, 1), padding=(0, 0, 0), rows=1, size=(1, 4, 8)).planting(
        ("multiply_tiles", "    cluster_exit(PAIR)", "    pass"),
        ("multiply_tiles", start, f"    cluster_exit(PAIR)\n{start}"),
    )
    with pytest.raises(KernelError, match="exited"):
        prove(record(case))


@pytest.mark.parametrize("seed", [10, 26, 31])
def test_partitions_of_a_cluster_start_together(seed):
    """Seeds that had a CTA load into memory that the other one had not allocated yet."""
    case = SHARED["tiles-weights"]
    operands = drawn(case, seed, integers=True)
    execute(case, seed, operands)
    np.testing.assert_array_equal(operands.y, expected(case, operands)[0])


@pytest.mark.parametrize(
    ("case", "match"),
    [
        (replace(TILES, stages=1), "one step after"),
        (replace(STRIPS, sets=1), "one step after"),
        (replace(PIXELS, stages=1), "one step after"),
        (replace(WGRAD, stages=1), "one step after"),
        (replace(TILES, transposed=True, dtype="float32"), "tf32"),
        (replace(SHARED["tiles-pixels"], chunks=2), "one piece"),
        (replace(STRIPS, tile=(1, 2, 8)), "2 rows or more"),
    ],
)
def test_forms_that_cannot_be_are_refused(case, match):
    with pytest.raises(KernelError, match=match):
        record(case)


WRONG = {
    "both consumers read one box": (
        Case("tiles"),
        [(CONSUME, "slot * (ROWS * COLUMNS) + CONSUMER)", "slot * (ROWS * COLUMNS))")],
    ),
    "a tap's row is off by one": (
        Case("tiles"),
        [(TILES_PRODUCE, "* TILE_P + r * step[1]", "* TILE_P + r")],
        {"dilation": (1, 2, 1)},
    ),
    "rows of two consumers are swapped": (
        Case("tiles"),
        [(CONSUME, "p * ROWS + CONSUMER // COLUMNS", "p * ROWS + 1 - CONSUMER // COLUMNS")],
    ),
    "weights of another tap": (
        Case("strips", tile=(1, 4, 8)),
        [(STRIPS_PRODUCE, "j * order[2]", "(R - 1 - j) * order[2]")],
        {"transposed": True},
    ),
    "a strip off by one": (
        Case("strips", tile=(1, 4, 8)),
        [(STRIPS_CONSUME, "LINES + line + j)", "LINES + line)")],
        {"dilation": (1, 2, 1)},
    ),
    "offset without dilation": (
        Case("pixels", tile=(1, 1, 32)),
        [(PIXELS_PRODUCE, "s * step[2]", "s")],
        {"dilation": (1, 1, 2)},
    ),
    "start without stride": (
        Case("pixels", tile=(1, 1, 32)),
        [("first_pixel", "q * strides[2]", "q")],
        {"stride": (1, 2, 2)},
    ),
    "every CTA loads the first pixels": (
        Case("pixels", tile=(1, 1, 64), shared="weights"),
        [(PIXELS_PRODUCE, " + rank * BOX", "")],
    ),
    "channels of the second half written over the first": (
        Case("tiles", chunks=2),
        [(STORE, "at_q, first + i * WIDTH]", "at_q, first]")],
    ),
    "bias of other channels": (
        Case("tiles", chunks=2, vectors=("bias",)),
        [(STORE, "first + i * WIDTH,\n            k,", "first,\n            k,")],
    ),
    "last pixels of a split twice": (
        Case("wgrad", tile=(1, 2, 8), splits=3),
        [("_conv_wgrad_tiles_kernel", "begin + share, boxes", "begin + share + 1, boxes")],
    ),
}
"""What is in order and wrong: found by running it."""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", WRONG)
def test_wrong_results_are_noticed(name, seed):
    case, edits, *changes = WRONG[name]
    case = replace(case, **changes[0]) if changes else case
    operands: Operands = drawn(case, seed, integers=True)
    try:
        execute(case.planting(*edits), seed, operands)
    except KernelError:
        return
    if case.kernel == "wgrad":
        assert not np.array_equal(operands.w.sum(0), weight_gradient(case, operands))
    else:
        assert not np.array_equal(operands.y, expected(case, operands)[0])


@pytest.mark.parametrize(
    "name", ["producer does not wait", "no fence before a store", "two products in flight, one slot freed"]
)
def test_running_finds_faults_too(name):
    """At least one of 16 seeds does."""
    case, edits = FAULTS[name]
    case = replace(case, n=2, size=(1, 9, 11), programs=2)

    def wrong(seed: int) -> bool:
        operands = drawn(case, seed, integers=True)
        try:
            execute(case.planting(*edits), seed, operands)
        except KernelError:
            return True
        return not np.array_equal(operands.y, expected(case, operands)[0])

    assert any(wrong(seed) for seed in range(16))
