// What the pooling kernels share: the description of a problem, places, windows, and accesses to lanes and indices.
//
// Axes: x and dx are N C D H W, y is N C O P Q; 1-D and 2-D problems have leading axes of size 1. A window has T R S taps.
//
// Threads: a thread computes LANES neighbouring elements of the result, which is dense, either contiguous (W or Q
// innermost) or channels-last (C innermost). Unit of work i is the elements i LANES to (i + 1) LANES - 1 in the order of
// memory, so that stores of a warp are consecutive, and so are its loads where the stride of the windows is 1 or C is
// innermost. LANES is 1, or on channels-last tensors as many channels as 16 bytes hold. Windows that overlap read their
// common elements from the L1 cache.
//
// Inputs have any strides. WIDE computes offsets in 64 bits, for tensors with offsets of 2^31 elements and more.
#include "common.cuh"

// Threads of a block, and how many blocks ptxas is asked to fit on a multiprocessor at least. Left to itself it aims at
// as many as 32 or 48 registers allow, and spills a few to get there; with a bound, here of 128, it aims at that alone.
constexpr int POOL_THREADS = 256, POOL_BLOCKS = 2;

struct PoolParams {
    long long units;  // how many units of work there are
    long long x_stride_n, x_stride_c, x_stride_d, x_stride_h, x_stride_w;
    long long y_stride_n, y_stride_c, y_stride_o, y_stride_p, y_stride_q;
    long long indices_stride_n, indices_stride_c, indices_stride_o, indices_stride_p, indices_stride_q;
    long long number_t, number_r, number_s;  // what one tap more along an axis adds to the number of an element
    long long samples_stride_n, samples_stride_c;  // of a fractional pool's samples
    long long sample_d, sample_h, sample_w;        // where the sample of an axis lies
    long long divisor;                       // what every sum is divided by; 0: by the count of its window
    double lowest;                           // the smallest number of the element type
    double norm;                             // the power of a power pool
    double alpha_d, alpha_h, alpha_w;        // the even distance of the windows of a fractional pool
    int c, d, h, w, o, p, q, t, r, s;
    int stride_d, stride_h, stride_w;
    int dilation_d, dilation_h, dilation_w;
    int pad_d, pad_h, pad_w;
    int pad_high_d, pad_high_h, pad_high_w;
    int channels_innermost;  // whether the result is channels-last
    int include_pad;         // whether padding counts in a window
    int magnitude;           // a max pool compares x (0), |x| (1) or -|x| (-1)
    int positions;           // numbers of elements are positions (d H + h) W + w (1) or taps (t R + r) S + s (0)
    int index_bytes;         // bytes of an index in memory
    int strips;              // threads that share one window, or one plane
    int slack;               // by how much a fractional window may start before or after its even place
};

// Whether 16 bytes can be accessed at once at a pointer. The host has made sure of the strides where LANES > 1.
__device__ __forceinline__ bool is_aligned(const void* pointer) {
    return (reinterpret_cast<unsigned long long>(pointer) & 15) == 0;
}

template <class T, int LANES>
struct alignas(LANES * sizeof(T) < 16 ? LANES * sizeof(T) : 16) Pack {
    T lane[LANES];
};

// Read LANES neighbours, 16 bytes at a time where `aligned`.
template <int LANES, class T>
__device__ __forceinline__ void load_lanes(compute_t<T> (&value)[LANES], const T* from, bool aligned) {
    Pack<T, LANES> pack;
    if (LANES > 1 && aligned) {
        pack = *reinterpret_cast<const Pack<T, LANES>*>(from);
    } else {
#pragma unroll
        for (int i = 0; i < LANES; ++i) pack.lane[i] = from[i];
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i) value[i] = to_compute(pack.lane[i]);
}

// Write LANES neighbours, rounded once, 16 bytes at a time where `aligned`.
template <int LANES, class T>
__device__ __forceinline__ void store_lanes(T* to, const compute_t<T> (&value)[LANES], bool aligned) {
    Pack<T, LANES> pack;
#pragma unroll
    for (int i = 0; i < LANES; ++i) pack.lane[i] = from_compute<T>(value[i]);
    if (LANES > 1 && aligned) {
        *reinterpret_cast<Pack<T, LANES>*>(to) = pack;
    } else {
#pragma unroll
        for (int i = 0; i < LANES; ++i) to[i] = pack.lane[i];
    }
}

// Indices have 1, 2, 4 or 8 bytes. The width is a number of the launch and not a template's, as it multiplies the
// kernels by four; all threads take one branch.
template <int LANES, class I>
__device__ __forceinline__ void load_indices(I (&number)[LANES], const void* indices, I offset, int bytes) {
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        if (bytes == 8) {
            // A position that 32 bits do not hold is of no plane here, and must not become one by being cut off.
            const long long found = static_cast<const long long*>(indices)[offset + i];
            number[i] = found == I(found) ? I(found) : I(-1);
        } else if (bytes == 4) {
            number[i] = static_cast<const int*>(indices)[offset + i];
        } else if (bytes == 2) {
            number[i] = static_cast<const short*>(indices)[offset + i];
        } else {
            number[i] = static_cast<const signed char*>(indices)[offset + i];
        }
    }
}

template <int LANES, class I>
__device__ __forceinline__ void store_indices(void* indices, I offset, const I (&number)[LANES], int bytes) {
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        if (bytes == 8) static_cast<long long*>(indices)[offset + i] = number[i];
        else if (bytes == 4) static_cast<int*>(indices)[offset + i] = int(number[i]);
        else if (bytes == 2) static_cast<short*>(indices)[offset + i] = short(number[i]);
        else static_cast<signed char*>(indices)[offset + i] = static_cast<signed char>(number[i]);
    }
}

template <class I>
struct Place {
    I n, c, z, y, x;
};

// Return index % size and leave index / size. All threads agree on whether the size is 1, which most outer axes are.
template <class I>
__device__ __forceinline__ I take_axis(I& index, I size) {
    if (size == 1) return 0;
    const I rest = index / size;
    const I at = index - rest * size;
    index = rest;
    return at;
}

// Return the place of a unit of work in a dense result with spatial axes Z Y X; `c` is the first of its LANES channels.
template <int LANES, class I>
__device__ __forceinline__ Place<I> place_of(I unit, I channels, I size_z, I size_y, I size_x, bool channels_innermost) {
    Place<I> at;
    if (channels_innermost) at.c = take_axis(unit, channels / LANES) * LANES;
    at.x = take_axis(unit, size_x);
    at.y = take_axis(unit, size_y);
    at.z = take_axis(unit, size_z);
    if (!channels_innermost) at.c = take_axis(unit, channels);
    at.n = unit;
    return at;
}

// Windows of one axis.
struct PoolAxis {
    int size, windows, taps, stride, dilation, pad, pad_high;
};

__device__ __forceinline__ PoolAxis axis_d(const PoolParams& p) {
    return {p.d, p.o, p.t, p.stride_d, p.dilation_d, p.pad_d, p.pad_high_d};
}

__device__ __forceinline__ PoolAxis axis_h(const PoolParams& p) {
    return {p.h, p.p, p.r, p.stride_h, p.dilation_h, p.pad_h, p.pad_high_h};
}

__device__ __forceinline__ PoolAxis axis_w(const PoolParams& p) {
    return {p.w, p.q, p.s, p.stride_w, p.dilation_w, p.pad_w, p.pad_high_w};
}

// One window along one axis: tap k reads coordinate start + k step, and is inside the input for begin <= k < end.
template <class I>
struct Window {
    I start, step, begin, end;
};

// A range of windows.
template <class I>
struct Range {
    I begin, end;
};

// Return how many steps of length `step` reach `distance`: 0 where that is not positive, else the quotient rounded up.
template <class I>
__device__ __forceinline__ I steps_over(I distance, I step) {
    if (distance <= 0) return 0;
    return step == 1 ? distance : (distance + step - 1) / step;
}

// Windows at a fixed stride, in the padding as well: max, average and power pools.
struct Strided {
    template <class I>
    static __device__ __forceinline__ Window<I> window(const PoolAxis& axis, I i) {
        const I start = i * axis.stride - axis.pad;
        const I end = steps_over<I>(axis.size - start, axis.dilation);
        return {start, I(axis.dilation), steps_over<I>(-start, axis.dilation), smaller<I>(end, axis.taps)};
    }

    // How many taps of window i count in its divisor. What ceil mode adds beyond the padding never does.
    template <class I>
    static __device__ __forceinline__ I count(const PoolAxis& axis, I i, bool include_pad) {
        if (!include_pad) {
            const Window<I> inside = window(axis, i);
            return larger<I>(inside.end - inside.begin, 0);
        }
        const I start = i * axis.stride - axis.pad;
        const I end = smaller<I>(start + I(axis.taps - 1) * axis.dilation + 1, axis.size + axis.pad_high);
        return steps_over<I>(end - start, axis.dilation);
    }

    // The windows whose extent contains coordinate i; between the taps of one, with a dilation, `tap` says -1.
    template <class I>
    static __device__ __forceinline__ Range<I> containing(const PoolAxis& axis, I i) {
        const I last = i + axis.pad;
        const I begin = steps_over<I>(last - I(axis.taps - 1) * axis.dilation, axis.stride);
        return {begin, smaller<I>(last / axis.stride + 1, axis.windows)};
    }

    // Which tap of a window that contains coordinate i reads it.
    template <class I>
    static __device__ __forceinline__ I tap(const PoolAxis& axis, I i, I window) {
        const I distance = i + axis.pad - window * axis.stride;
        if (axis.dilation == 1) return distance;
        const I tap = distance / axis.dilation;
        return tap * axis.dilation == distance ? tap : I(-1);
    }
};

// Window i of an adaptive pool reads from floor(i size / windows) up to ceil((i + 1) size / windows), exclusive.
// Coordinates and windows change places in `containing`: window i is the first to end beyond a coordinate x from
// i = floor(x windows / size) on.
struct Adaptive {
    template <class I>
    static __device__ __forceinline__ I start(I i, I size, I windows) {
        return i * size / windows;
    }

    template <class I>
    static __device__ __forceinline__ I end(I i, I size, I windows) {
        return ((i + 1) * size + windows - 1) / windows;
    }

    template <class I>
    static __device__ __forceinline__ Window<I> window(const PoolAxis& axis, I i) {
        if (axis.windows == 1) return {0, 1, 0, I(axis.size)};
        const I first = start<I>(i, axis.size, axis.windows);
        return {first, 1, 0, end<I>(i, axis.size, axis.windows) - first};
    }

    template <class I>
    static __device__ __forceinline__ I count(const PoolAxis& axis, I i, bool) {
        return window(axis, i).end;
    }

    template <class I>
    static __device__ __forceinline__ Range<I> containing(const PoolAxis& axis, I i) {
        if (axis.windows == 1) return {0, 1};
        return {start<I>(i, axis.windows, axis.size), end<I>(i, axis.windows, axis.size)};
    }

    template <class I>
    static __device__ __forceinline__ I tap(const PoolAxis& axis, I i, I window) {
        return axis.windows == 1 ? i : i - start<I>(window, axis.size, axis.windows);
    }
};

// One window along all axes.
template <class I>
struct Box {
    Window<I> d, h, w;
};

template <class WINDOWS, class I>
__device__ __forceinline__ Box<I> box_of(const PoolParams& p, const Place<I>& at) {
    return {WINDOWS::window(axis_d(p), at.z), WINDOWS::window(axis_h(p), at.y), WINDOWS::window(axis_w(p), at.x)};
}

// Return what the sum of the window at a place is divided by.
template <class WINDOWS, class I>
__device__ __forceinline__ long long divisor_of(const PoolParams& p, I i_o, I i_p, I i_q) {
    if (p.divisor != 0) return p.divisor;
    long long count = WINDOWS::count(axis_d(p), i_o, p.include_pad);
    count *= WINDOWS::count(axis_h(p), i_p, p.include_pad);
    return count * WINDOWS::count(axis_w(p), i_q, p.include_pad);
}

// Return the number of tap (t, r, s) of a window, from which a position still lacks that of tap (0, 0, 0).
template <class I>
__device__ __forceinline__ I number_of(const PoolParams& p, I t, I r, I s) {
    return t * I(p.number_t) + r * I(p.number_r) + s * I(p.number_s);
}

// Return a number that some element has: a dilated window may have taps in the padding alone, outside of the plane.
template <class I>
__device__ __forceinline__ I inside_plane(const PoolParams& p, I number) {
    const I last = I(p.d) * I(p.h) * I(p.w) - 1;
    return p.positions && number > last ? last : number;
}

// Return the position of tap (0, 0, 0) of a window, which may lie in the padding, or 0 where numbers are taps.
template <class I>
__device__ __forceinline__ I corner_of(const PoolParams& p, const Box<I>& box) {
    return p.positions ? (box.d.start * p.h + box.h.start) * p.w + box.w.start : I(0);
}
