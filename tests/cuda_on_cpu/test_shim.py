"""The shim itself: what it must run right, and what it must report instead of running."""

from __future__ import annotations

import fake_cupy
import numpy as np
import pytest
from fake_cupy import MACHINE, RawModule, asnumpy, empty, guarded

from gpuconv.backends.cupy.common import OPTIONS
from gpuconv.kernels import cu

HEAD = "\n" + cu.expand("common.cuh", {})
PARAMS = np.dtype([("n", np.int64), ("steps", np.int32), ("scale", np.float32)], align=True)


def launch(body, kernel, grid, block, arrays, params=(0, 0, 0.0), head=""):
    """Compile `kernel` of the text `body` and launch it."""
    struct = "struct Params { long long n; int steps; float scale; };\n"
    module = RawModule(code=HEAD + '#line 1 "test.cu"\n' + struct + body, options=OPTIONS, name_expressions=(kernel,))
    record = np.asarray(np.array(tuple(params), PARAMS))
    module.get_function(kernel)((grid,), (block,), (*arrays, record))


ROTATE = """
template <class T>
__global__ void rotate(const T* x, T* y, Params p) {
    __shared__ T tile[64];
    float sum = 0.0f;
    for (int step = 0; step < p.steps; ++step) {
        tile[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
        BARRIER
        sum += to_compute(tile[(threadIdx.x + 1) % 64]);
        __syncthreads();
    }
    y[blockIdx.x * blockDim.x + threadIdx.x] = from_compute<T>(sum * p.scale);
}
"""


@pytest.mark.parametrize(
    ("mode", "dtype", "orders"),
    [
        ("library", "float16", (0, 0)),
        ("library", "float16", (1, 1)),
        ("library", "bfloat16", (2, 2)),
        ("address", "bfloat16", (2, 2)),
        ("thread", "bfloat16", (2, 2)),
    ],
)
def test_threads_meet_at_barriers(mode, dtype, orders):
    fake_cupy.MACHINE.mode, fake_cupy.MACHINE.orders = mode, orders
    values = np.arange(3.0 * 64) % 50
    x, y = guarded(values, dtype), empty((3 * 64,), fake_cupy.dtype(dtype))
    kernel = f"rotate<{'f16' if dtype == 'float16' else 'bf16'}>"
    launch(ROTATE.replace("BARRIER", "__syncthreads();"), kernel, 3, 64, (x, y), (0, 3, 0.5))
    assert asnumpy(y).tolist() == (np.roll(values.reshape(3, 64), -1, 1) * 1.5).ravel().tolist()


def test_a_missing_barrier_depends_on_the_order_of_threads():
    found = []
    for order in ((0, 0), (0, 1)):
        fake_cupy.MACHINE.orders = order
        x, y = guarded(np.arange(64.0), "float32"), empty((64,), np.float32)
        launch(ROTATE.replace("BARRIER", ""), "rotate<float>", 1, 64, (x, y), (0, 1, 1.0))
        found.append(asnumpy(y))
    assert not np.array_equal(found[0], found[1])


def test_a_missing_barrier_is_a_data_race_under_thread_sanitizer():
    fake_cupy.MACHINE.mode = "thread"
    x, y = guarded(np.arange(64.0), "float32"), empty((64,), np.float32)
    with pytest.raises(RuntimeError, match="ThreadSanitizer: data race"):
        launch(ROTATE.replace("BARRIER", ""), "rotate<float>", 1, 64, (x, y), (0, 1, 1.0))


@pytest.mark.parametrize("mode", ["library", "address", "thread"])
def test_a_thread_that_leaves_before_a_barrier_is_an_error(mode):
    fake_cupy.MACHINE.mode = mode
    body = """
__global__ void leave(float* y, Params p) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    y[threadIdx.x] = 1.0f;
}
"""
    with pytest.raises(RuntimeError, match=r"block 0: 1 threads ended while (31|others) wait"):
        launch(body, "leave", 1, 32, (empty((32,), np.float32),))


def test_different_barriers_are_an_error():
    body = """
__global__ void parted(float* y, Params p) {
    if (threadIdx.x < 16)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1.0f;
}
"""
    with pytest.raises(RuntimeError, match="wait at different barriers"):
        launch(body, "parted", 1, 32, (empty((32,), np.float32),))


def test_shared_memory_is_poisoned_for_every_block():
    body = """
__global__ void stale(float* y, Params p) {
    __shared__ float tile[32];
    if (blockIdx.x == 0) tile[threadIdx.x] = 1.0f;
    __syncthreads();
    y[blockIdx.x * 32 + threadIdx.x] = tile[threadIdx.x];
}
"""
    y = empty((64,), np.float32)
    launch(body, "stale", 2, 32, (y,))
    assert (asnumpy(y)[:32] == 1).all() and np.isnan(asnumpy(y)[32:]).all()


OUTSIDE = """
__global__ void outside(const float* x, float* y, Params p) {
    __shared__ float tile[32];
    tile[threadIdx.x] = 0.0f;
    __syncthreads();
    y[threadIdx.x + (p.n == 1)] = x[threadIdx.x + (p.n == 2)] + tile[threadIdx.x + (p.n == 3)];
}
"""


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_address_sanitizer_finds_every_kind_of_access_out_of_bounds(place):
    fake_cupy.MACHINE.mode = "address"
    arrays = guarded(np.zeros(32), "float32"), empty((32,), np.float32)
    if place == 0:
        launch(OUTSIDE, "outside", 1, 32, arrays, (0, 0, 0.0))
        return
    with pytest.raises(RuntimeError, match=r"AddressSanitizer|runtime error: index 32 out of bounds"):
        launch(OUTSIDE, "outside", 1, 32, arrays, (place, 0, 0.0))


def test_guard_bands_find_writes_out_of_bounds():
    arrays = guarded(np.zeros(32), "float32"), empty((32,), np.float32)
    launch(OUTSIDE, "outside", 1, 32, arrays, (1, 0, 0.0))
    with pytest.raises(AssertionError, match="wrote outside of its array, 128 bytes"):
        arrays[1].memory.check("y")
    launch(OUTSIDE, "outside", 1, 32, arrays, (2, 0, 0.0))
    assert np.isnan(asnumpy(arrays[1])[-1])


MMA = """
template <class T>
__global__ void multiply(const T* a, const T* b, float* y, Params p) {
    __shared__ __align__(16) T left[16 * 16], right[16 * 16];
    const int lane = threadIdx.x % 32, row = lane / 4, pair = 2 * (lane % 4);
    for (int i = threadIdx.x; i < 256; i += blockDim.x) {
        left[i] = a[i];
        right[i] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : T{0};
    }
    __syncthreads();
    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int step = 0; step < p.steps; ++step) {
        unsigned fragment[4], other[4], columns[2];
        // Tiles of a in the order of its fragment: (rows 0-7, k 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
        load_matrices<false>(fragment, &left[(lane % 8 + lane / 8 % 2 * 8) * 16 + lane / 16 * 8]);
        load_matrices<true>(other, &right[(lane % 16) * 16 + lane / 16 * 8]);
        columns[0] = other[0];
        columns[1] = pack_two(right[(pair + 8) * 16 + row], right[(pair + 9) * 16 + row]);
        mma_m16n8k16(acc, fragment, columns, T{});
    }
    float* mine = y + threadIdx.x / 32 * 128;
    for (int i = 0; i < 4; ++i) mine[(row + 8 * (i / 2)) * 8 + pair + i % 2] = acc[i];
}
"""


@pytest.mark.parametrize("mode", ["library", "thread"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_emulated_tensor_core_multiplies_matrices(mode, dtype):
    fake_cupy.MACHINE.mode, fake_cupy.MACHINE.orders = mode, (0, 2)
    random = np.random.default_rng(0)
    a, b = random.integers(-8, 9, (16, 16)).astype(float), random.integers(-8, 9, (16, 8)).astype(float)
    y = empty((2, 16, 8), np.float32)
    kernel = f"multiply<{'f16' if dtype == 'float16' else 'bf16'}>"
    launch(MMA, kernel, 1, 64, (guarded(a, dtype), guarded(b, dtype), y), (0, 3, 0.0))
    assert (asnumpy(y) == 3 * (a @ b)).all()


def test_half_a_warp_at_the_tensor_core_is_an_error():
    body = MMA.replace("for (int step = 0", "if (lane < 16) for (int step = 0")
    y = empty((1, 16, 8), np.float32)
    arrays = guarded(np.zeros((16, 16)), "float16"), guarded(np.zeros((16, 8)), "float16"), y
    with pytest.raises(RuntimeError, match="not all lanes reach"):
        launch(body, "multiply<f16>", 1, 32, arrays, (0, 1, 0.0))


CONVERT = """
template <class T>
__global__ void convert(const float* x, T* y, float* z, Params p) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.n) return;
    y[i] = from_compute<T>(x[i]);
    z[i] = to_compute(y[i]);
}
"""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_conversions_round_to_nearest_even(dtype):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    bits = random.integers(0, 2**32, 20000, np.uint32)
    # Ties of both types as well, infinities, and numbers around the limits of float16.
    bits[:6000] &= 0xFFFFF000
    bits[6000:8000] = bits[6000:8000] & 0xFFFF8000
    special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519, 65520, 2**-24, 2**-25, 1e-45])
    values = np.concatenate([bits.view(np.float32), special])
    narrow = getattr(torch, dtype)
    expected = torch.from_numpy(values).to(narrow)
    y, z = empty(values.shape, fake_cupy.dtype(dtype)), empty(values.shape, np.float32)
    kernel = f"convert<{'f16' if dtype == 'float16' else 'bf16'}>"
    launch(CONVERT, kernel, 400, 64, (guarded(values, "float32"), y, z), (len(values), 0, 0.0))
    assert np.array_equal(asnumpy(y).astype(np.float32), expected.float().numpy(), equal_nan=True)
    assert np.array_equal(asnumpy(z), expected.float().numpy(), equal_nan=True)


DIVIDE = """
__global__ void divide(int* down, int* up, int* rest, Params p) {
    const int i = threadIdx.x, value = i - 16;
    down[i] = floor_div(value, static_cast<int>(p.n));
    up[i] = ceil_div(value, static_cast<int>(p.n));
    rest[i] = floor_mod(value, static_cast<int>(p.n));
}
"""


@pytest.mark.parametrize("divisor", [1, 3, 8])
def test_quotients_of_negative_numbers(divisor):
    down, up, rest = (empty((32,), np.int32) for _ in range(3))
    launch(DIVIDE, "divide", 1, 32, (down, up, rest), (divisor, 0, 0.0))
    value = np.arange(32) - 16
    assert (asnumpy(down) == value // divisor).all()
    assert (asnumpy(up) == -(-value // divisor)).all()
    assert (asnumpy(rest) == value % divisor).all()


def test_machine_is_reset_between_tests():
    assert fake_cupy.MACHINE.mode == "library" and fake_cupy.MACHINE is not MACHINE
