// Gradients of a deformable convolution with respect to its offsets, mask and input.
//
// What a sample gets back, its column gradient, is a product of y's gradient and weights. Offsets and mask take sums of
// it over channels, in the block that formed it (conv_deform_offsets). The input takes it back where it was sampled:
// column gradients are stored (conv_deform_columns), samples are sorted by the cell between elements that they lie in
// (conv_deform_cells has the keys; where each list begins, conv_deform_starts finds), and each element of the input
// adds up the samples of the cells around it, in their order (conv_deform_gather). So nothing is added by atomics, and
// sums do not depend on timing.
//
// Samples are numbered as (image, group of offsets, tap, position), the last one first; images from first_n on.

#include "deform.cuh"

template <class C, class I>
struct DeformDgradShared {
    I y_at[C::M];
    Tiles<C> tiles;
};

template <class C, class I>
__device__ __forceinline__ void find_rows(I (&y_at)[C::M], const ConvParams& p, I first_n, I first_row, int rows) {
    for (int i = static_cast<int>(threadIdx.x); i < rows; i += C::THREADS) {
        const Position<I> at = position<I>(first_row + i, p.out[0], p.out[1], p.out[2]);
        y_at[i] = (first_n + at.n) * static_cast<I>(p.y_stride[0]) + spatial_offset(at.d, at.h, at.w, p.y_stride);
    }
}

// The gradients of offset and mask, both contiguous, either may be null: of M positions, one group of offsets and tap.
// Column gradients meet the corners of the samples, of which the offset along an axis gets the mask times the slope of
// the weight, the mask the weight itself. PARTS threads share a row, each with every PARTS-th channel.
// Grid: cdiv(N O P Q, M) * (groups of offsets) * T R S blocks: blocks of the same rows are neighbours.
template <class T, int DIMS, bool WIDE, class Shape>
__global__ void __launch_bounds__(Shape::THREADS, 1)
conv_deform_offsets(const T* __restrict__ y, const T* __restrict__ x, const T* __restrict__ offset,
                    const T* __restrict__ mask, const T* __restrict__ w, T* __restrict__ offset_grad,
                    T* __restrict__ mask_grad, DeformParams params) {
    using I = index_t<WIDE>;
    using Sum = compute_t<T>;
    using C = Core<Sum, Shape, UNITS, UNITS>;
    constexpr int PARTS = C::THREADS / C::M, CORNERS = 1 << DIMS;
    static_assert(PARTS * CORNERS <= C::N, "sums of a row's threads must fit where its column gradients were");
    __shared__ DeformDgradShared<C, I> shared;

    const ConvParams& p = params.conv;
    const I t = p.kernel[0], r = p.kernel[1], s = p.kernel[2], taps = t * r * s;
    const I samples = params.offset_groups * taps, sample = static_cast<I>(blockIdx.x) % samples;
    const I first_row = static_cast<I>(blockIdx.x) / samples * C::M, tap = sample % taps;
    const I positions = p.out[0] * p.out[1] * p.out[2];
    const int rows = static_cast<int>(smaller<I>(static_cast<I>(p.n) * positions - first_row, C::M));
    find_rows<C>(shared.y_at, p, I(0), first_row, rows);

    const int thread = static_cast<int>(threadIdx.x);
    const bool dense = p.x_stride[1] == 1;
    const int row = dense ? thread / PARTS : thread % C::M, part = dense ? thread % PARTS : thread / C::M;
    const Position<I> at = position<I>(row < rows ? first_row + row : first_row, p.out[0], p.out[1], p.out[2]);
    const auto found = sampled_at<DIMS>(offset, params, at, tap, sample);
    const T* image = x + at.n * static_cast<I>(p.x_stride[0]);
    Sum met[CORNERS] = {};

    C core;
    const I per_offset = params.per_offset, segment = params.segment, c = p.c;
    const I end = sample / taps * per_offset + per_offset;
    for (I first = end - per_offset; segment > 0 && first < end; first += segment) {
        const I group = first / c, first_filter = group * static_cast<I>(p.k);
        for (I chunk = 0; chunk < segment; chunk += C::N) {
            const int columns = static_cast<int>(smaller<I>(segment - chunk, C::N));
            const T* weights = w + (first_filter * static_cast<I>(p.w_stride[0]) +
                                    (first - group * c + chunk) * static_cast<I>(p.w_stride[1]) +
                                    spatial_offset(tap / (r * s), tap / s % r, tap % s, p.w_stride));
            stage_column_gradients(core, shared.tiles, y + first_filter * static_cast<I>(p.y_stride[1]), weights,
                                   shared.y_at, rows, columns, static_cast<I>(p.k), static_cast<I>(p.y_stride[1]),
                                   static_cast<I>(p.w_stride[0]), static_cast<I>(p.w_stride[1]));
            for (int column = part; column < columns && row < rows; column += PARTS) {
                const Sum gradient = shared.tiles.staged[row][column];
                const T* source = image + (first + chunk + column) * static_cast<I>(p.x_stride[1]);
#pragma unroll
                for (int corner = 0; corner < CORNERS; corner++) {  // what is outside adds nothing
                    if (!found.inside(corner)) continue;
                    const Sum value = to_compute(source[found.at(corner, p.x_stride)]);
                    met[corner] = multiply_add(gradient, value, met[corner]);
                }
            }
        }
    }

    __syncthreads();
#pragma unroll
    for (int corner = 0; corner < CORNERS; corner++) shared.tiles.staged[row][part * CORNERS + corner] = met[corner];
    __syncthreads();
    if (part > 0 || row >= rows) return;
    Sum of_mask = 0, of_axis[DIMS] = {};
#pragma unroll
    for (int corner = 0; corner < CORNERS; corner++) {
        Sum sum = shared.tiles.staged[row][corner];
        for (int other = 1; other < PARTS; other++) sum += shared.tiles.staged[row][other * CORNERS + corner];
        if (found.there()) of_mask += found.weight(corner, -1) * sum;
#pragma unroll
        for (int axis = 0; axis < DIMS; axis++) of_axis[axis] += found.weight(corner, axis) * sum;
    }
    const I rest = (first_row + row) % positions, line = at.n * samples + sample;
    if (mask_grad) mask_grad[line * positions + rest] = from_compute<T>(of_mask * found.whole());
    if (!offset_grad) return;
    const Sum factor = found.whole() * mask_at(mask, params, at, sample);
#pragma unroll
    for (int axis = 0; axis < DIMS; axis++) {
        const int number = axis - (DIMS - params.axes);
        if (number < 0) continue;
        offset_grad[(line * params.axes + number) * positions + rest] = from_compute<T>(of_axis[axis] * factor);
    }
}

// Column gradients [N O P Q, T R S, channels], of images from first_n on and channels from first_channel on: whole
// groups, or a part of one.
// Grid: cdiv(N O P Q, M) * T R S * tiles_n blocks, tiles_n = channels / width * cdiv(width, N).
template <class T, bool WIDE, class Shape>
__global__ void __launch_bounds__(Shape::THREADS, 1)
conv_deform_columns(const T* __restrict__ y, const T* __restrict__ w, compute_t<T>* __restrict__ columns_grad,
                    DeformParams params) {
    using I = index_t<WIDE>;
    using C = Core<compute_t<T>, Shape, UNITS, UNITS>;
    __shared__ DeformDgradShared<C, I> shared;

    const ConvParams& p = params.conv;
    const I t = p.kernel[0], r = p.kernel[1], s = p.kernel[2], taps = t * r * s, width = params.width, c = p.c;
    const I tile_n = static_cast<I>(blockIdx.x) % p.tiles_n, rest = static_cast<I>(blockIdx.x) / p.tiles_n;
    const I tap = rest % taps, first_row = rest / taps * C::M;
    const int rows = static_cast<int>(smaller<I>(
        static_cast<I>(p.n) * static_cast<I>(p.out[0] * p.out[1] * p.out[2]) - first_row, C::M));
    find_rows<C>(shared.y_at, p, static_cast<I>(params.first_n), first_row, rows);
    const I per_width = ceil_div<I>(width, C::N), in_width = tile_n % per_width * C::N;
    const I stored = tile_n / per_width * width + in_width, channel = static_cast<I>(params.first_channel) + stored;
    const int columns = static_cast<int>(smaller<I>(width - in_width, C::N));
    const I group = channel / c, first_filter = group * static_cast<I>(p.k);
    const T* weights = w + (first_filter * static_cast<I>(p.w_stride[0]) +
                            (channel - group * c) * static_cast<I>(p.w_stride[1]) +
                            spatial_offset(tap / (r * s), tap / s % r, tap % s, p.w_stride));
    C core;
    stage_column_gradients(core, shared.tiles, y + first_filter * static_cast<I>(p.y_stride[1]), weights, shared.y_at,
                           rows, columns, static_cast<I>(p.k), static_cast<I>(p.y_stride[1]),
                           static_cast<I>(p.w_stride[0]), static_cast<I>(p.w_stride[1]));
    for_each_staged(shared.tiles, rows, columns, true, [&](int row, int column, compute_t<T> sum) {
        columns_grad[((first_row + row) * taps + tap) * static_cast<I>(params.channels) + stored + column] = sum;
    });
}

// The key of each sample: the list that it belongs to, of which there is one for each image, group of offsets and
// cell; past the last one where x has no part in it. Along an axis cells are counted from the one below the first
// element. One sample a thread.
// Grid: cdiv(samples, 256) blocks.
template <class T>
__global__ void __launch_bounds__(256)
conv_deform_cells(const T* __restrict__ offset, long long* __restrict__ keys, DeformParams params) {
    using I = long long;
    const ConvParams& p = params.conv;
    const I id = static_cast<I>(blockIdx.x) * 256 + static_cast<int>(threadIdx.x);
    if (id >= params.samples) return;
    Position<I> at = position<I>(id, p.out[0], p.out[1], p.out[2]);
    const I line = id / (p.out[0] * p.out[1] * p.out[2]), taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
    const I image = line / taps;  // and group of offsets
    at.n = params.first_n + image / params.offset_groups;
    const auto found = sampled_at<3>(offset, params, at, line % taps, line % (params.offset_groups * taps));
    I cell = 0;
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
        if (axis >= 3 - params.axes) cell = cell * (p.size[axis] + 1) + found.axis[axis].low + 1;
    }
    keys[id] = found.there() ? image * params.cells + cell : p.n * params.offset_groups * params.cells;
}

// Where each list begins among the sorted samples, and where the last one ends: a search for each.
// Grid: cdiv(lists + 1, 256) blocks.
template <class Key>
__global__ void __launch_bounds__(256)
conv_deform_starts(const Key* __restrict__ keys, const Key* __restrict__ order, Key* __restrict__ starts,
                   DeformParams params) {
    const long long list = static_cast<long long>(blockIdx.x) * 256 + static_cast<int>(threadIdx.x);
    if (list > params.conv.n * params.offset_groups * params.cells) return;
    long long low = 0, high = params.samples;
    while (low < high) {
        const long long middle = (low + high) / 2;
        if (keys[order[middle]] < list) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    starts[list] = low;
}

// The gradient of x: one element of one channel a thread, neighbours along channels, as column gradients lie. Of the
// cells around it the element is a corner of their samples.
// Grid: cdiv(N D H W channels, 128) blocks.
template <class T, bool WIDE>
__global__ void __launch_bounds__(128, 4)
conv_deform_gather(const T* __restrict__ offset, const T* __restrict__ mask,
                   const compute_t<T>* __restrict__ columns_grad, const long long* __restrict__ order,
                   const long long* __restrict__ starts, T* __restrict__ x_grad, DeformParams params) {
    using I = index_t<WIDE>;
    const ConvParams& p = params.conv;
    const I channels = params.channels, positions = p.out[0] * p.out[1] * p.out[2], groups = params.offset_groups;
    const I taps = p.kernel[0] * p.kernel[1] * p.kernel[2], cells = params.cells;
    const I number = static_cast<I>(blockIdx.x) * 128 + static_cast<int>(threadIdx.x);
    if (number >= static_cast<I>(p.n) * static_cast<I>(p.size[0] * p.size[1] * p.size[2]) * channels) return;
    const I stored = number % channels, channel = static_cast<I>(params.first_channel) + stored;
    const Position<I> here = position<I>(number / channels, p.size[0], p.size[1], p.size[2]);
    const I coordinates[3] = {here.d, here.h, here.w};
    const I first_list = (here.n * groups + channel / static_cast<I>(params.per_offset)) * cells;
    const I n = static_cast<I>(params.first_n) + here.n;
    compute_t<T> sum = 0;
    for (int corner = 0; corner < 1 << params.axes; corner++) {
        I list = 0;
#pragma unroll
        for (int axis = 0; axis < 3; axis++) {
            const int high = corner >> (2 - axis) & 1;
            if (axis >= 3 - params.axes) {
                list = list * static_cast<I>(p.size[axis] + 1) + coordinates[axis] + 1 - high;
            }
        }
        const I last = starts[first_list + list + 1];
        for (I i = starts[first_list + list]; i < last; i++) {
            const I id = order[i], line = id / positions, tap = line % taps, sample = line % (groups * taps);
            Position<I> at = position<I>(id, p.out[0], p.out[1], p.out[2]);
            at.n = n;
            compute_t<T> weight = sampled_at<3>(offset, params, at, tap, sample).weight(corner, -1);
            if (weight == 0) continue;  // whatever its gradient
            weight *= mask_at(mask, params, at, sample);
            const I column = ((here.n * positions + id % positions) * taps + tap) * channels + stored;
            sum = multiply_add(weight, columns_grad[column], sum);
        }
    }
    x_grad[n * static_cast<I>(p.x_stride[0]) + channel * static_cast<I>(p.x_stride[1]) +
           spatial_offset(here.d, here.h, here.w, p.x_stride)] = from_compute<T>(sum);
}
