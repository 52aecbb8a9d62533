// Pooling over large windows, forward: global pools and others of which a window is too much work for one thread.
//
// Threads: `strips` threads share a window (a power of two up to 256), so that a block of 256 threads has 256 / strips
// windows, neighbours in memory. Strip i reads elements i, i + strips, ... of its window in the order D H W: where W is
// innermost neighbouring threads are neighbouring strips, and on channels-last tensors they are neighbouring channels, so
// that they read neighbouring elements in both. What the strips found is then combined in shared memory by halves. Every
// step of that has a fixed place, so results are the same bits in every run, and a plane of 256 strips fills a block even
// where there are few planes.
//
// Grid: ceil(windows * strips / 256) blocks of 256 threads.
#include "pool_reduce.cuh"

// What a thread is to its block: one strip of one window, whose partner by `half` strips is `half` * `pitch` threads away.
template <class I>
struct Strip {
    I unit;
    int strip, pitch;
};

template <class I>
__device__ __forceinline__ Strip<I> strip_of(const PoolParams& p) {
    const int thread = int(threadIdx.x), groups = POOL_THREADS / p.strips;
    const int group = p.channels_innermost ? thread % groups : thread / p.strips;
    const int strip = p.channels_innermost ? thread / groups : thread % p.strips;
    return {I(blockIdx.x) * groups + group, strip, p.channels_innermost ? groups : 1};
}

// The taps of a box that lie inside the input, numbered in the order D H W.
template <class I>
struct Inside {
    I d, h, w;
};

template <class I>
__device__ __forceinline__ Inside<I> inside_of(const Box<I>& box) {
    return {larger<I>(box.d.end - box.d.begin, 0), larger<I>(box.h.end - box.h.begin, 0),
            larger<I>(box.w.end - box.w.begin, 0)};
}

// The tap of an element of a box.
template <class I>
struct Tap {
    I t, r, s;
};

template <class I>
__device__ __forceinline__ Tap<I> tap_of(const Box<I>& box, const Inside<I>& inside, I element) {
    if (inside.d * inside.h == 1) return {box.d.begin, box.h.begin, box.w.begin + element};
    const I row = element / inside.w;
    const I slice = row / inside.h;
    return {box.d.begin + slice, box.h.begin + row - slice * inside.h, box.w.begin + element - row * inside.w};
}

template <class I>
__device__ __forceinline__ I offset_of(const PoolParams& p, const Box<I>& box, const Tap<I>& tap) {
    return (box.d.start + tap.t * box.d.step) * I(p.x_stride_d) + (box.h.start + tap.r * box.h.step) * I(p.x_stride_h) +
           (box.w.start + tap.s * box.w.step) * I(p.x_stride_w);
}

// Whether b wins over a. A number of -1 has seen no element; NaN beats numbers, the last NaN and the first of equals win.
template <class V, class I>
__device__ __forceinline__ bool wins(V b, I number_b, V a, I number_a) {
    if (number_b < 0 || number_a < 0) return number_b >= 0;
    if (b != b) return a == a || number_b > number_a;
    return b > a || (b == a && number_b < number_a);
}

// x: N C D H W by strides. y and indices: N C O P Q, dense and alike; either may be null.
template <class T, class WINDOWS, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_max_block(const T* __restrict__ x, T* __restrict__ y, void* __restrict__ indices, PoolParams p) {
    using I = index_t<WIDE>;
    using V = compute_t<T>;
    __shared__ V found[POOL_THREADS];
    __shared__ I where[POOL_THREADS];
    const Strip<I> me = strip_of<I>(p);
    const int thread = int(threadIdx.x);
    const bool exists = me.unit < I(p.units);

    V best = V(p.lowest);
    I number = -1, corner = 0, first = 0;
    if (exists) {
        const Place<I> at = place_of<1, I>(me.unit, p.c, p.o, p.p, p.q, p.channels_innermost);
        const Box<I> box = box_of<WINDOWS>(p, at);
        const Inside<I> inside = inside_of(box);
        const T* plane = x + at.n * I(p.x_stride_n) + at.c * I(p.x_stride_c);
        for (I element = me.strip; element < inside.d * inside.h * inside.w; element += p.strips) {
            const Tap<I> tap = tap_of(box, inside, element);
            const V value = compared(to_compute(plane[offset_of(p, box, tap)]), p.magnitude);
            const bool better = number < 0 || value > best || value != value;
            best = better ? value : best;
            number = better ? number_of<I>(p, tap.t, tap.r, tap.s) : number;
        }
        corner = corner_of(p, box);
        first = number_of<I>(p, box.d.begin, box.h.begin, box.w.begin);
    }
    found[thread] = best;
    where[thread] = number;
    for (int half = p.strips / 2; half > 0; half /= 2) {
        __syncthreads();
        const int partner = thread + half * me.pitch;
        if (me.strip < half && wins(found[partner], where[partner], found[thread], where[thread])) {
            found[thread] = found[partner];
            where[thread] = where[partner];
        }
    }
    if (!exists || me.strip != 0) return;
    best = p.magnitude < 0 ? -found[thread] : found[thread];
    const I chosen[1] = {inside_plane(p, corner + (where[thread] < 0 ? first : where[thread]))};
    if (y) y[me.unit] = from_compute<T>(best);
    if (indices) store_indices<1>(indices, me.unit, chosen, p.index_bytes);
}

// x: N C D H W by strides. y: N C O P Q, dense. FINISH is AVERAGE or ROOT.
template <class T, class WINDOWS, Finish FINISH, bool WIDE>
__global__ void __launch_bounds__(POOL_THREADS, POOL_BLOCKS)
    pool_sum_block(const T* __restrict__ x, T* __restrict__ y, PoolParams p) {
    using I = index_t<WIDE>;
    using V = compute_t<T>;
    __shared__ V sum[POOL_THREADS];
    const Strip<I> me = strip_of<I>(p);
    const int thread = int(threadIdx.x);
    const bool exists = me.unit < I(p.units);

    V total = V(0);
    long long divisor = 1;
    if (exists) {
        const Place<I> at = place_of<1, I>(me.unit, p.c, p.o, p.p, p.q, p.channels_innermost);
        const Box<I> box = box_of<WINDOWS>(p, at);
        const Inside<I> inside = inside_of(box);
        const T* plane = x + at.n * I(p.x_stride_n) + at.c * I(p.x_stride_c);
        for (I element = me.strip; element < inside.d * inside.h * inside.w; element += p.strips) {
            const Tap<I> tap = tap_of(box, inside, element);
            total += summand<FINISH>(to_compute(plane[offset_of(p, box, tap)]), p.norm);
        }
        divisor = divisor_of<WINDOWS>(p, at.z, at.y, at.x);
    }
    sum[thread] = total;
    for (int half = p.strips / 2; half > 0; half /= 2) {
        __syncthreads();
        if (me.strip < half) sum[thread] += sum[thread + half * me.pitch];
    }
    if (exists && me.strip == 0) y[me.unit] = from_compute<T>(finished<FINISH>(sum[thread], divisor, p));
}
