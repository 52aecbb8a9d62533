// unfold, which copies the windows of an image into columns, and fold, its adjoint, which adds them up.
//
// fold gathers: a thread adds the columns that its element of the image is in, by rows of windows, then along a row, so
// that nothing is added atomically and equal calls give equal bits. Both are bound by memory.
//
// Axes: x is N C H W, y is N (C R S) (P Q). The struct's strides of y are those of its three axes: n, c and q.
#include "pool.cuh"

// y: dense, 0 where a window lies outside of the image; x by strides. Threads: one element of y each, columns innermost.
// Grid: ceil(units / 256) blocks of 256 threads.
template <class T, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_unfold_fprop(const T* __restrict__ x, T* __restrict__ y, PoolParams p) {
    using I = index_t<WIDE>;
    const I unit = I(blockIdx.x) * I(blockDim.x) + I(threadIdx.x);
    if (unit >= I(p.units)) return;
    I rest = unit;
    const I i_q = take_axis<I>(rest, p.q), i_p = take_axis<I>(rest, p.p);
    const I s = take_axis<I>(rest, p.s), r = take_axis<I>(rest, p.r);
    const I i_c = take_axis<I>(rest, p.c);
    const I i_h = i_p * p.stride_h - p.pad_h + r * p.dilation_h;
    const I i_w = i_q * p.stride_w - p.pad_w + s * p.dilation_w;
    T value = from_compute<T>(compute_t<T>(0));
    if (i_h >= 0 && i_h < p.h && i_w >= 0 && i_w < p.w) {
        value = x[rest * I(p.x_stride_n) + i_c * I(p.x_stride_c) + i_h * I(p.x_stride_h) + i_w * I(p.x_stride_w)];
    }
    y[unit] = value;
}

// x: dense; y by strides. Sums are in the compute type and rounded once. Threads: one element of x each.
// Grid: ceil(units / 256) blocks of 256 threads.
template <class T, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_fold_fprop(const T* __restrict__ y, T* __restrict__ x, PoolParams p) {
    using I = index_t<WIDE>;
    const I unit = I(blockIdx.x) * I(blockDim.x) + I(threadIdx.x);
    if (unit >= I(p.units)) return;
    I rest = unit;
    const I i_w = take_axis<I>(rest, p.w), i_h = take_axis<I>(rest, p.h);
    const I i_c = take_axis<I>(rest, p.c);
    const PoolAxis rows = axis_h(p), columns = axis_w(p);
    const Range<I> over_h = Strided::containing<I>(rows, i_h), over_w = Strided::containing<I>(columns, i_w);
    const I corner = rest * I(p.y_stride_n) + i_c * p.r * p.s * I(p.y_stride_c);
    compute_t<T> total = 0;
    for (I i_p = over_h.begin; i_p < over_h.end; ++i_p) {
        const I r = Strided::tap<I>(rows, i_h, i_p);
        if (r < 0) continue;
        for (I i_q = over_w.begin; i_q < over_w.end; ++i_q) {
            const I s = Strided::tap<I>(columns, i_w, i_q);
            if (s < 0) continue;
            const I from = (r * p.s + s) * I(p.y_stride_c) + (i_p * p.q + i_q) * I(p.y_stride_q);
            total += to_compute(y[corner + from]);
        }
    }
    x[unit] = from_compute<T>(total);
}
