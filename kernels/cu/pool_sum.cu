// Average and power pooling over windows, forward and backward: average, adaptive average and power pools.
//
// Forward: a thread adds up the windows of its LANES outputs, taps in the order D H W. Sums are formed anew for every
// window: one that moved along by adding and subtracting would carry one infinity on as NaN.
//
// Backward: a thread gathers the gradient of its LANES elements of x from the windows that contain them, in the order
// O P Q, without atomics. A power pool has two launches: the first makes the slope of every window, which is what the
// window adds to each of its elements but for a power of that element, and the second spreads it.
//
// Grid: ceil(units / 256) blocks of 256 threads, see pool.cuh for how units lie in memory.
#include "pool_reduce.cuh"

// x: N C D H W by strides; grad, the gradient of y where FINISH is SLOPE: N C O P Q by the strides of y. y: dense.
template <class T, class WINDOWS, Finish FINISH, int LANES, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_sum_fprop(const T* __restrict__ x, const T* __restrict__ grad, typename Finished<T, FINISH>::type* __restrict__ y,
                   PoolParams p) {
    using I = index_t<WIDE>;
    using V = compute_t<T>;
    const I unit = I(blockIdx.x) * I(blockDim.x) + I(threadIdx.x);
    if (unit >= I(p.units)) return;
    const Place<I> at = place_of<LANES, I>(unit, p.c, p.o, p.p, p.q, p.channels_innermost);
    const Box<I> box = box_of<WINDOWS>(p, at);
    const bool aligned = is_aligned(x);

    V total[LANES];
#pragma unroll
    for (int i = 0; i < LANES; ++i) total[i] = V(0);
    const I step = box.w.step * I(p.x_stride_w);
    const T* plane = x + at.n * I(p.x_stride_n) + at.c * I(p.x_stride_c);
    for (I t = box.d.begin; t < box.d.end; ++t) {
        const I slice = (box.d.start + t * box.d.step) * I(p.x_stride_d);
        for (I r = box.h.begin; r < box.h.end; ++r) {
            I offset = slice + (box.h.start + r * box.h.step) * I(p.x_stride_h);
            offset += (box.w.start + box.w.begin * box.w.step) * I(p.x_stride_w);
            for (I s = box.w.begin; s < box.w.end; ++s) {
                V seen[LANES];
                load_lanes<LANES>(seen, plane + offset, aligned);
#pragma unroll
                for (int i = 0; i < LANES; ++i) total[i] += summand<FINISH>(seen[i], p.norm);
                offset += step;
            }
        }
    }

    const long long divisor = divisor_of<WINDOWS>(p, at.z, at.y, at.x);
    V result[LANES];
    if constexpr (FINISH == SLOPE) {
        const I offset = at.n * I(p.y_stride_n) + at.c * I(p.y_stride_c) + at.z * I(p.y_stride_o) +
                         at.y * I(p.y_stride_p) + at.x * I(p.y_stride_q);
        load_lanes<LANES>(result, grad + offset, is_aligned(grad));
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        if constexpr (FINISH == SLOPE) result[i] = slope(total[i], result[i], divisor, p);
        else result[i] = finished<FINISH>(total[i], divisor, p);
    }
    store_lanes<LANES>(y + unit * LANES, result, is_aligned(y));
}

// The element type of what is spread: gradients of averages, or slopes of a power pool.
template <class T, bool POWER>
struct Spread {
    using type = T;
};
template <class T>
struct Spread<T, true> {
    using type = compute_t<T>;
};

// y: N C O P Q by strides, the gradients of averages, which are divided here, or slopes. x: N C D H W by strides, read
// for a POWER alone, whose derivative multiplies the sum. dx: N C D H W, dense.
template <class T, bool POWER, class WINDOWS, int LANES, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_sum_bwd(const typename Spread<T, POWER>::type* __restrict__ y, const T* __restrict__ x, T* __restrict__ dx,
                 PoolParams p) {
    using I = index_t<WIDE>;
    using V = compute_t<T>;
    const I unit = I(blockIdx.x) * I(blockDim.x) + I(threadIdx.x);
    if (unit >= I(p.units)) return;
    const Place<I> at = place_of<LANES, I>(unit, p.c, p.d, p.h, p.w, p.channels_innermost);
    const PoolAxis d = axis_d(p), h = axis_h(p), w = axis_w(p);
    const Range<I> range_o = WINDOWS::containing(d, at.z);
    const Range<I> range_p = WINDOWS::containing(h, at.y);
    const Range<I> range_q = WINDOWS::containing(w, at.x);
    const typename Spread<T, POWER>::type* plane = y + at.n * I(p.y_stride_n) + at.c * I(p.y_stride_c);
    const bool aligned = is_aligned(y);

    V total[LANES];
#pragma unroll
    for (int i = 0; i < LANES; ++i) total[i] = V(0);
    for (I i_o = range_o.begin; i_o < range_o.end; ++i_o) {
        const I t = WINDOWS::tap(d, at.z, i_o);
        for (I i_p = range_p.begin; i_p < range_p.end; ++i_p) {
            const I r = WINDOWS::tap(h, at.y, i_p);
            const I row = i_o * I(p.y_stride_o) + i_p * I(p.y_stride_p);
#pragma unroll 1  // windows that share an element are few, and unrolled their addresses take every register
            for (I i_q = range_q.begin; i_q < range_q.end; ++i_q) {
                const I s = WINDOWS::tap(w, at.x, i_q);
                if (t < 0 || r < 0 || s < 0) continue;
                V grad[LANES];
                load_lanes<LANES>(grad, plane + row + i_q * I(p.y_stride_q), aligned);
                const V divisor = POWER ? V(1) : V(divisor_of<WINDOWS>(p, i_o, i_p, i_q));
#pragma unroll
                for (int i = 0; i < LANES; ++i) total[i] += POWER ? grad[i] : grad[i] / divisor;
            }
        }
    }

    if constexpr (POWER) {
        V seen[LANES];
        const I offset = at.n * I(p.x_stride_n) + at.c * I(p.x_stride_c) + at.z * I(p.x_stride_d) +
                         at.y * I(p.x_stride_h) + at.x * I(p.x_stride_w);
        load_lanes<LANES>(seen, x + offset, is_aligned(x));
#pragma unroll
        for (int i = 0; i < LANES; ++i) total[i] *= p.norm == 1.0 ? V(1) : power(seen[i], p.norm - 1.0) * V(p.norm);
    }
    store_lanes<LANES>(dx + unit * LANES, total, is_aligned(dx));
}
