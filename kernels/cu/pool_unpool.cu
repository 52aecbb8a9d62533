// Max unpooling, which puts elements at their indices in planes of zeros, and its gradient, which reads them back.
//
// Equal indices of one plane name one place more than once, and the last one stays, as on torch's CPU. That takes no
// atomics: a block owns whole planes and works through their elements in order, one tile after another. Inside a tile an
// element gives way to every later one with the same index, so that no two threads write to one place, and barriers keep
// the tiles apart. No order of threads shows in the result.
//
// Axes: x and indices are N C D H W, y is N C O P Q, dense.
#include "pool.cuh"

// Fill the `units` elements of y with zeros. Threads: 16 bytes each, in blocks of 256.
template <class T>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_unpool_clear(T* __restrict__ y, PoolParams p) {
    constexpr int LANES = 16 / sizeof(T);
    const long long begin = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * LANES;
    const compute_t<T> zeros[LANES] = {};
    if (begin + LANES <= p.units) {
        store_lanes<LANES>(y + begin, zeros, is_aligned(y));
    } else {
        for (long long i = begin; i < p.units; ++i) y[i] = from_compute<T>(zeros[0]);
    }
}

// Threads: a block has blockDim.x / strips planes; a tile is `strips` elements of each. Neighbouring threads are
// neighbouring elements or, on channels-last results, neighbouring channels. Grid: ceil(units * strips / blockDim.x)
// blocks of up to 256 threads, with planes as units. x and indices by strides of their own.
template <class T, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_unpool_fprop(const T* __restrict__ x, const long long* __restrict__ indices, T* __restrict__ y, PoolParams p) {
    using I = index_t<WIDE>;
    __shared__ I tile[256];
    const int thread = int(threadIdx.x), groups = int(blockDim.x) / p.strips;
    const int group = p.channels_innermost ? thread % groups : thread / p.strips;
    const int strip = p.channels_innermost ? thread / groups : thread % p.strips;
    const int pitch = p.channels_innermost ? groups : 1;
    const I plane = I(blockIdx.x) * groups + group;
    const I i_n = plane / p.c, i_c = plane - i_n * p.c;
    const I x_plane = i_n * I(p.x_stride_n) + i_c * I(p.x_stride_c);
    const I indices_plane = i_n * I(p.indices_stride_n) + i_c * I(p.indices_stride_c);
    const I y_plane = i_n * I(p.y_stride_n) + i_c * I(p.y_stride_c);
    const I elements = I(p.d) * p.h * p.w;
    const long long places = (long long)p.o * p.p * p.q;

    for (I begin = 0; begin < elements; begin += p.strips) {
        I element = begin + strip, target = -1, offset = 0;
        if (element < elements && plane < I(p.units)) {
            const I i_w = take_axis<I>(element, p.w), i_h = take_axis<I>(element, p.h);
            const I from = element * I(p.indices_stride_o) + i_h * I(p.indices_stride_p) + i_w * I(p.indices_stride_q);
            const long long found = indices[indices_plane + from];
            target = found >= 0 && found < places ? I(found) : I(-1);
            offset = element * I(p.x_stride_d) + i_h * I(p.x_stride_h) + i_w * I(p.x_stride_w);
        }
        __syncthreads();
        tile[thread] = target;
        __syncthreads();
        bool last = target >= 0;
        for (int other = strip + 1; other < p.strips; ++other) {
            last = last && tile[thread + (other - strip) * pitch] != target;
        }
        if (last) y[y_plane + target * I(p.y_stride_q)] = x[x_plane + offset];
    }
}

// y, the gradient of the output, and indices by strides. dx: N C D H W, dense; an index outside of y gives 0.
// Grid: ceil(units / 256) blocks of 256 threads, see pool.cuh for how units lie in memory.
template <class T, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_unpool_bwd(const T* __restrict__ y, const long long* __restrict__ indices, T* __restrict__ dx, PoolParams p) {
    using I = index_t<WIDE>;
    const I unit = I(blockIdx.x) * I(blockDim.x) + I(threadIdx.x);
    if (unit >= I(p.units)) return;
    const Place<I> at = place_of<1, I>(unit, p.c, p.d, p.h, p.w, p.channels_innermost);
    const I from = at.n * I(p.indices_stride_n) + at.c * I(p.indices_stride_c) + at.z * I(p.indices_stride_o) +
                   at.y * I(p.indices_stride_p) + at.x * I(p.indices_stride_q);
    const long long found = indices[from];
    T value = from_compute<T>(compute_t<T>(0));
    if (found >= 0 && found < (long long)p.o * p.p * p.q) {
        I place = I(found);
        const I i_q = take_axis<I>(place, p.q), i_p = take_axis<I>(place, p.p);
        value = y[at.n * I(p.y_stride_n) + at.c * I(p.y_stride_c) + place * I(p.y_stride_o) + i_p * I(p.y_stride_p) +
                  i_q * I(p.y_stride_q)];
    }
    dx[unit] = value;
}
