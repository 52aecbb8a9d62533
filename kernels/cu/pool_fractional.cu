// Fractional max pooling (Graham 2014) with given random samples, forward and backward.
//
// Every plane has windows of its own: window i of an axis starts at int((i + u) a) - int(u a), with the sample u of plane
// and axis and a = (size - taps) / (windows - 1), which the host rounds, and the last one ends with the axis. Starts are computed in the type
// that elements are compared in, as torch does on CUDA.
//
// Forward: a thread walks through the window of one output, as in pool_max.cu. Backward: a thread gathers the gradient of
// one element of x from the windows that may contain it whatever the sample, in the order O P Q, where the index is the
// element. Positions need no samples; taps do.
//
// Grid: ceil(units / 256) blocks of 256 threads, see pool.cuh for how units lie in memory.
#include "pool_reduce.cuh"

// Starts of the windows of one axis of one plane. A sample outside of [0, 1) gives windows inside of the axis all the same.
template <class V, class I>
struct Starts {
    V sample, alpha;
    I last, windows;

    __device__ __forceinline__ I operator()(I i) const {
        if (i == windows - 1) return last;
        const I moved = I((V(i) + sample) * alpha) - I(sample * alpha);
        return smaller<I>(larger<I>(moved, 0), last);
    }
};

template <class T, class I>
__device__ __forceinline__ Starts<compute_t<T>, I> starts_of(const PoolAxis& axis, const T* sample, double alpha) {
    return {to_compute(*sample), compute_t<T>(alpha), I(axis.size - axis.taps), I(axis.windows)};
}

// The windows that may contain coordinate i, whatever the sample: window j starts no further than `slack` from j a.
template <class I>
__device__ __forceinline__ Range<I> candidates(const PoolAxis& axis, I i, I slack) {
    const I last = axis.size - axis.taps, intervals = axis.windows - 1;
    if (last == 0) return {0, I(axis.windows)};
    const I from = larger<I>(i - axis.taps - slack, 0) * intervals / last;
    return {from, smaller<I>((i + slack) * intervals / last + 1, axis.windows)};
}

// x: N C D H W by strides, samples: N C axes by strides. y and indices: N C O P Q, dense and alike; indices may be null.
template <class T, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_fractional_fprop(const T* __restrict__ x, const T* __restrict__ samples, T* __restrict__ y,
                          void* __restrict__ indices, PoolParams p) {
    using I = index_t<WIDE>;
    using V = compute_t<T>;
    const I unit = I(blockIdx.x) * I(blockDim.x) + I(threadIdx.x);
    if (unit >= I(p.units)) return;
    const Place<I> at = place_of<1, I>(unit, p.c, p.o, p.p, p.q, p.channels_innermost);
    const T* sample = samples + at.n * I(p.samples_stride_n) + at.c * I(p.samples_stride_c);
    const I d = starts_of<T, I>(axis_d(p), sample + I(p.sample_d), p.alpha_d)(at.z);
    const I h = starts_of<T, I>(axis_h(p), sample + I(p.sample_h), p.alpha_h)(at.y);
    const I w = starts_of<T, I>(axis_w(p), sample + I(p.sample_w), p.alpha_w)(at.x);
    const Box<I> box = {{d, 1, 0, I(p.t)}, {h, 1, 0, I(p.r)}, {w, 1, 0, I(p.s)}};

    V best[1];
    I number[1];
    largest_in<1>(best, number, x + at.n * I(p.x_stride_n) + at.c * I(p.x_stride_c), box, false, p);
    store_lanes<1>(y + unit, best, false);
    if (indices) store_indices<1>(indices, unit, number, p.index_bytes);
}

// y, the gradient of the output, and indices: N C O P Q by strides of their own. dx: N C D H W, dense. samples: see above;
// they are not read, and may be null, where indices are positions.
template <class T, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_fractional_bwd(const T* __restrict__ y, const void* __restrict__ indices, const T* __restrict__ samples,
                        T* __restrict__ dx, PoolParams p) {
    using I = index_t<WIDE>;
    using V = compute_t<T>;
    const I unit = I(blockIdx.x) * I(blockDim.x) + I(threadIdx.x);
    if (unit >= I(p.units)) return;
    const Place<I> at = place_of<1, I>(unit, p.c, p.d, p.h, p.w, p.channels_innermost);
    const PoolAxis d = axis_d(p), h = axis_h(p), w = axis_w(p);
    const Range<I> range_o = candidates<I>(d, at.z, p.slack);
    const Range<I> range_p = candidates<I>(h, at.y, p.slack);
    const Range<I> range_q = candidates<I>(w, at.x, p.slack);
    const I y_plane = at.n * I(p.y_stride_n) + at.c * I(p.y_stride_c);
    const I indices_plane = at.n * I(p.indices_stride_n) + at.c * I(p.indices_stride_c);
    Starts<V, I> start_d{}, start_h{}, start_w{};
    if (!p.positions) {
        const T* sample = samples + at.n * I(p.samples_stride_n) + at.c * I(p.samples_stride_c);
        start_d = starts_of<T, I>(d, sample + I(p.sample_d), p.alpha_d);
        start_h = starts_of<T, I>(h, sample + I(p.sample_h), p.alpha_h);
        start_w = starts_of<T, I>(w, sample + I(p.sample_w), p.alpha_w);
    }

    V total[1] = {V(0)};
    for (I i_o = range_o.begin; i_o < range_o.end; ++i_o) {
        const I t = p.positions ? 0 : at.z - start_d(i_o);
        for (I i_p = range_p.begin; i_p < range_p.end; ++i_p) {
            const I r = p.positions ? 0 : at.y - start_h(i_p);
            const I y_row = y_plane + i_o * I(p.y_stride_o) + i_p * I(p.y_stride_p);
            const I indices_row = indices_plane + i_o * I(p.indices_stride_o) + i_p * I(p.indices_stride_p);
#pragma unroll 1  // windows that share an element are few, and unrolled their addresses take every register
            for (I i_q = range_q.begin; i_q < range_q.end; ++i_q) {
                const I s = p.positions ? 0 : at.x - start_w(i_q);
                if (t < 0 || t >= p.t || r < 0 || r >= p.r || s < 0 || s >= p.s) continue;
                const I wanted = p.positions ? (at.z * p.h + at.y) * p.w + at.x : number_of<I>(p, t, r, s);
                I number[1];
                load_indices<1>(number, indices, indices_row + i_q * I(p.indices_stride_q), p.index_bytes);
                if (number[0] == wanted) total[0] += to_compute(y[y_row + i_q * I(p.y_stride_q)]);
            }
        }
    }
    store_lanes<1>(dx + unit, total, false);
}
