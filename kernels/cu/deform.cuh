// What the kernels of deformable convolution share: where samples are, how they are read, and column gradients.
//
// A sample lies anywhere between the elements of x. It is interpolated between two neighbours along each axis that has
// offsets: between 2^DIMS corners. Bit 0 of a corner is for W, bit 1 for H, bit 2 for D; a set bit means the higher
// neighbour. Corners outside of x count as zeros, and so do samples not strictly between -1 and the size of an axis.
//
// A segment is a run of channels that share a group and a group of offsets: their samples have the same positions.
// Everything is summed in float32, float64 of float64: samples are not rounded before they are multiplied.

#include "tile.cuh"

// One pass, in three spatial axes; strides in elements. gpuconv/backends/cupy/conv_deform.py mirrors this struct.
struct DeformParams {
    ConvParams conv;
    long long offset_stride[5];  // N, (group of offsets, tap, axis), O P Q
    long long mask_stride[5];    // N, (group of offsets, tap), O P Q
    long long segment;           // channels
    long long per_offset;        // channels of a group of offsets
    long long first_n;           // gradient of x: the images conv.n from here on
    long long first_channel;     // and channels from here on
    long long channels;          // how many
    long long width;             // how many of them, side by side, share a group
    long long samples;           // of those images
    long long cells;             // of an image: one more along each axis than elements
    int offset_groups;
    int axes;  // how many, the last ones, have offsets
};

__device__ __forceinline__ float round_down(float value) { return floorf(value); }
__device__ __forceinline__ double round_down(double value) { return floor(value); }

// ------------------------------------------------------------------------------------------------- where samples are

// One axis of a sample: lower neighbour, how far above it the position is, whether either neighbour is inside, and
// whether there is a sample. At -1 itself the higher neighbour is inside although there is none: the gradient of a
// position has it.
template <class Sum, class I>
struct Along {
    I low;
    Sum fraction;
    bool inside[2];
    bool there;
};

template <class Sum, class I>
__device__ __forceinline__ Along<Sum, I> along(Sum position, I size) {
    const bool near = position >= -1 && position < static_cast<Sum>(size);  // NaN is not
    const Sum known = near ? position : Sum(0), low = round_down(known);
    const I at = static_cast<I>(low);
    return {at, known - low, {near && at >= 0, near && at < size - 1}, near && position > -1};
}

// The axes D H W of a sample, of which the last DIMS are used; it is broken where its position is NaN along one.
template <int DIMS, class Sum, class I>
struct Sampled {
    static constexpr int CORNERS = 1 << DIMS;
    Along<Sum, I> axis[DIMS];
    bool broken;

    static __device__ __forceinline__ int high(int corner, int number) { return (corner >> (DIMS - 1 - number)) & 1; }

    __device__ __forceinline__ bool there() const {
        bool all = true;
#pragma unroll
        for (int number = 0; number < DIMS; number++) all = all && axis[number].there;
        return all;
    }
    __device__ __forceinline__ bool inside(int corner) const {
        bool all = true;
#pragma unroll
        for (int number = 0; number < DIMS; number++) all = all && axis[number].inside[high(corner, number)];
        return all;
    }
    // The weight of a corner, or its derivative by the position along axis `slope` (-1: none).
    __device__ __forceinline__ Sum weight(int corner, int slope) const {
        Sum product = 1;
#pragma unroll
        for (int number = 0; number < DIMS; number++) {
            const Sum share = high(corner, number) ? axis[number].fraction : 1 - axis[number].fraction;
            product *= number == slope ? (high(corner, number) ? Sum(1) : Sum(-1)) : share;
        }
        return product;
    }
    // Where a corner lies in a channel of an image of x.
    __device__ __forceinline__ I at(int corner, const long long (&stride)[5]) const {
        I sum = 0;
#pragma unroll
        for (int number = 0; number < DIMS; number++) {
            sum += (axis[number].low + high(corner, number)) * static_cast<I>(stride[5 - DIMS + number]);
        }
        return sum;
    }
    __device__ __forceinline__ Sum whole() const { return broken ? Sum(__int_as_float(0x7fc00000)) : Sum(1); }
};

// The sample of a tap at an output; `sample` counts groups of offsets and taps. Axes without offsets have position 0.
template <int DIMS, class T, class I>
__device__ __forceinline__ Sampled<DIMS, compute_t<T>, I> sampled_at(const T* offset, const DeformParams& params,
                                                                     const Position<I>& at, I tap, I sample) {
    using Sum = compute_t<T>;
    const ConvParams& p = params.conv;
    const I r = p.kernel[1], s = p.kernel[2], step = params.offset_stride[1];
    const I taps[3] = {tap / (r * s), tap / s % r, tap % s}, outs[3] = {at.d, at.h, at.w};
    const T* moved = offset + (at.n * static_cast<I>(params.offset_stride[0]) + sample * params.axes * step +
                               spatial_offset(at.d, at.h, at.w, params.offset_stride));
    Sampled<DIMS, Sum, I> found;
    found.broken = false;
#pragma unroll
    for (int number = 0; number < DIMS; number++) {
        const int axis = 3 - DIMS + number, of_offset = number - (DIMS - params.axes);
        Sum position = 0;
        if (of_offset >= 0) {
            const I base = outs[axis] * static_cast<I>(p.stride[axis]) - static_cast<I>(p.pad_lo[axis]) +
                           taps[axis] * static_cast<I>(p.dilation[axis]);
            position = static_cast<Sum>(base) + to_compute(moved[of_offset * step]);
        }
        found.broken = found.broken || position != position;
        found.axis[number] = along<Sum, I>(position, p.size[axis]);
    }
    return found;
}

// The mask of a sample; 1 where there is none.
template <class T, class I>
__device__ __forceinline__ compute_t<T> mask_at(const T* mask, const DeformParams& params, const Position<I>& at,
                                                I sample) {
    if (!mask) return 1;
    return to_compute(mask[at.n * static_cast<I>(params.mask_stride[0]) +
                           sample * static_cast<I>(params.mask_stride[1]) +
                           spatial_offset(at.d, at.h, at.w, params.mask_stride)]);
}

// ROWS samples in shared memory, to be read in any number of channels.
template <class Sum, class I, int DIMS, int ROWS>
struct Samples {
    static constexpr int CORNERS = 1 << DIMS;
    Sum weight[CORNERS][ROWS];
    Sum factor[ROWS];  // the mask, NaN of what is broken
    I at[CORNERS][ROWS];
    int reads[ROWS];  // a bit for each corner

    template <class T>
    __device__ __forceinline__ void put(int row, const T* offset, const T* mask, const DeformParams& params,
                                        const Position<I>& output, I tap, I sample) {
        const auto found = sampled_at<DIMS>(offset, params, output, tap, sample);
        const I image = output.n * static_cast<I>(params.conv.x_stride[0]);
        int bits = 0;
#pragma unroll
        for (int corner = 0; corner < CORNERS; corner++) {
            weight[corner][row] = found.weight(corner, -1);
            at[corner][row] = image + found.at(corner, params.conv.x_stride);
            bits |= (found.there() && found.inside(corner)) << corner;
        }
        reads[row] = bits;
        factor[row] = found.whole() * mask_at(mask, params, output, sample);
    }

    // The sample of a row in the channel that `source` points to.
    template <class T>
    __device__ __forceinline__ Sum load(const T* source, int row) const {
        const int bits = reads[row];
        Sum sum = 0;
#pragma unroll
        for (int corner = 0; corner < CORNERS; corner++) {
            const Sum value = bits >> corner & 1 ? to_compute(source[at[corner][row]]) : Sum(0);
            sum = multiply_add(weight[corner][row], value, sum);
        }
        return sum * factor[row];
    }
};

// ------------------------------------------------------------------------------------------------------------- tiles

// Operands of two steps; at the end, sums stand where they were.
template <class C>
struct Tiles {
    union {
        typename C::Buffer buffer[2];
        typename C::Sum staged[C::M][C::N + 1];
    };
};

// Call `put(unit, depth)` for all UNITS_ x K elements of an operand's step, neighbouring threads along units or depth.
template <int UNITS_, class C, class Put>
__device__ __forceinline__ void for_each_element(bool along_depth, const Put& put) {
#pragma unroll
    for (int i = 0; i < UNITS_ * C::K / C::THREADS; i++) {
        const int run = i * C::THREADS + static_cast<int>(threadIdx.x);
        put(along_depth ? run / C::K : run % UNITS_, along_depth ? run % C::K : run / UNITS_);
    }
}

// Put the sums of a core where every thread finds them; the block may read them when this returns.
template <class C>
__device__ __forceinline__ void stage_sums(const C& core, Tiles<C>& tiles) {
    static_assert(C::SLAB == C::M, "a tile is staged at once");
    __syncthreads();
    core.template stage<0>(tiles.staged);
    __syncthreads();
}

// Call `store(row, column, sum)` for each of the first rows and columns that are staged.
template <class C, class Store>
__device__ __forceinline__ void for_each_staged(const Tiles<C>& tiles, int rows, int columns, bool along_columns,
                                                const Store& store) {
#pragma unroll 1
    for (int e = static_cast<int>(threadIdx.x); e < C::M * C::N; e += C::THREADS) {
        const int row = along_columns ? e / C::N : e % C::M, column = along_columns ? e % C::N : e / C::M;
        if (row < rows && column < columns) store(row, column, tiles.staged[row][column]);
    }
}

// Stage the column gradients of a tile, sum_k y[row, k] w[k, column], `filters` of them. `y` and `w` point to the first
// filter of a group, `w` to the first column and the tap as well; y_at has the offsets of rows in shared memory.
template <class C, class T, class I>
__device__ __forceinline__ void stage_column_gradients(C& core, Tiles<C>& tiles, const T* y, const T* w,
                                                       const I (&y_at)[C::M], int rows, int columns, I filters,
                                                       I y_step, I w_step, I column_step) {
    core.clear();
    int number = 0;
    __syncthreads();  // what is staged has been read, and y_at is there
    for (I first = 0; first < filters; first += C::K) {
        typename C::Buffer& buffer = tiles.buffer[number];
        for_each_element<C::M, C>(y_step == 1, [&](int row, int k) {
            const bool inside = row < rows && first + k < filters;
            buffer.a[k][row] = inside ? to_compute(y[y_at[row] + (first + k) * y_step]) : 0;
        });
        for_each_element<C::N, C>(w_step == 1, [&](int column, int k) {
            const bool inside = column < columns && first + k < filters;
            buffer.b[k][column] = inside ? to_compute(w[(first + k) * w_step + column * column_step]) : 0;
        });
        if (first > 0) core.multiply(tiles.buffer[number ^ 1]);
        __syncthreads();
        number ^= 1;
    }
    if (filters > 0) core.multiply(tiles.buffer[number ^ 1]);
    stage_sums(core, tiles);
}
