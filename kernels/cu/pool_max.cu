// Max pooling over windows, forward and backward: max, adaptive max, and power pools with an infinite power.
//
// Forward: a thread walks through the windows of its LANES outputs, taps in the order D H W, and keeps the largest
// element and its number. The first of equal maxima stays, NaN beats numbers and the last NaN stays, as in torch. Taps
// outside of the input are never visited. A window of nothing but the smallest number has the number of its first tap.
//
// Backward: a thread gathers the gradient of its LANES elements of x from the windows that contain them, in the order
// O P Q, where the index of the window is the element. Every element has one thread, so there are no atomics, and the
// order of the sum never changes.
//
// Grid: ceil(units / 256) blocks of 256 threads, see pool.cuh for how units lie in memory.
#include "pool_reduce.cuh"

// x: N C D H W by strides. y and indices: N C O P Q, dense and alike; either may be null.
template <class T, class WINDOWS, int LANES, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_max_fprop(const T* __restrict__ x, T* __restrict__ y, void* __restrict__ indices, PoolParams p) {
    using I = index_t<WIDE>;
    using V = compute_t<T>;
    const I unit = I(blockIdx.x) * I(blockDim.x) + I(threadIdx.x);
    if (unit >= I(p.units)) return;
    const Place<I> at = place_of<LANES, I>(unit, p.c, p.o, p.p, p.q, p.channels_innermost);
    const Box<I> box = box_of<WINDOWS>(p, at);

    V best[LANES];
    I number[LANES];
    largest_in<LANES>(best, number, x + at.n * I(p.x_stride_n) + at.c * I(p.x_stride_c), box, is_aligned(x), p);
#pragma unroll
    for (int i = 0; i < LANES; ++i) best[i] = p.magnitude < 0 ? -best[i] : best[i];
    if (y) store_lanes<LANES>(y + unit * LANES, best, is_aligned(y));
    if (indices) store_indices<LANES>(indices, unit * LANES, number, p.index_bytes);
}

// y, the gradient of the output, and indices: N C O P Q by strides of their own. dx: N C D H W, dense. With x, by
// strides, sums are multiplied by the sign of x where a window chose the element: the gradient of a magnitude.
template <class T, class WINDOWS, int LANES, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_max_bwd(const T* __restrict__ y, const void* __restrict__ indices, const T* __restrict__ x,
                 T* __restrict__ dx, PoolParams p) {
    using I = index_t<WIDE>;
    using V = compute_t<T>;
    const I unit = I(blockIdx.x) * I(blockDim.x) + I(threadIdx.x);
    if (unit >= I(p.units)) return;
    const Place<I> at = place_of<LANES, I>(unit, p.c, p.d, p.h, p.w, p.channels_innermost);
    const PoolAxis d = axis_d(p), h = axis_h(p), w = axis_w(p);
    const Range<I> range_o = WINDOWS::containing(d, at.z);
    const Range<I> range_p = WINDOWS::containing(h, at.y);
    const Range<I> range_q = WINDOWS::containing(w, at.x);
    const I position = (at.z * p.h + at.y) * p.w + at.x;
    const T* y_plane = y + at.n * I(p.y_stride_n) + at.c * I(p.y_stride_c);
    const I indices_plane = at.n * I(p.indices_stride_n) + at.c * I(p.indices_stride_c);
    const bool aligned = is_aligned(y);

    V total[LANES];
    bool chosen[LANES];
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        total[i] = V(0);
        chosen[i] = false;
    }
    for (I i_o = range_o.begin; i_o < range_o.end; ++i_o) {
        const I t = WINDOWS::tap(d, at.z, i_o);
        for (I i_p = range_p.begin; i_p < range_p.end; ++i_p) {
            const I r = WINDOWS::tap(h, at.y, i_p);
            const I y_row = i_o * I(p.y_stride_o) + i_p * I(p.y_stride_p);
            const I indices_row = indices_plane + i_o * I(p.indices_stride_o) + i_p * I(p.indices_stride_p);
#pragma unroll 1  // windows that share an element are few, and unrolled their addresses take every register
            for (I i_q = range_q.begin; i_q < range_q.end; ++i_q) {
                const I s = WINDOWS::tap(w, at.x, i_q);
                if (t < 0 || r < 0 || s < 0) continue;
                const I wanted = p.positions ? position : number_of<I>(p, t, r, s);
                V grad[LANES];
                I number[LANES];
                load_indices<LANES>(number, indices, indices_row + i_q * I(p.indices_stride_q), p.index_bytes);
                load_lanes<LANES>(grad, y_plane + y_row + i_q * I(p.y_stride_q), aligned);
#pragma unroll
                for (int i = 0; i < LANES; ++i) {
                    const bool hit = number[i] == wanted;
                    total[i] += hit ? grad[i] : V(0);
                    chosen[i] = chosen[i] || hit;
                }
            }
        }
    }

    if (x) {
        V seen[LANES];
        const I offset = at.n * I(p.x_stride_n) + at.c * I(p.x_stride_c) + at.z * I(p.x_stride_d) +
                         at.y * I(p.x_stride_h) + at.x * I(p.x_stride_w);
        load_lanes<LANES>(seen, x + offset, is_aligned(x));
#pragma unroll
        for (int i = 0; i < LANES; ++i) {
            const V sign = seen[i] > V(0) ? V(1) : seen[i] < V(0) ? V(-1) : seen[i];  // NaN stays
            total[i] = chosen[i] ? total[i] * sign : V(0);
        }
    }
    store_lanes<LANES>(dx + unit * LANES, total, is_aligned(dx));
}
