// Weight gradient as an implicit GEMM whose reduction is split, and the pass that adds the splits in order:
// w = wgrad(x, y), and bias = the sum of y over images and positions.
//
// For each group: rows are the channels of x and the taps, C/G T R S, columns the channels K/G of y, and the reduction
// runs over the pixels N O P Q, cut into consecutive splits of `per_split`. The gathered operand is x: row (c, t, r, s)
// stands at t * dilation - pad, pixel (n, o, p, q) adds o * stride. The plain operand is y, whose columns the blocks of
// the first tile of rows sum for the bias.
// Grid: splits * groups * tiles_m * tiles_n blocks, tiles_m = cdiv(C/G T R S, M), tiles_n = cdiv(K/G, N).
//
// With more than one split, sums go unrounded to `partial` [splits][K rows, then K for the bias], rows being C/G T R S
// in the order of the tile's, and conv_wgrad_sum adds the splits in their order, whichever block came first.

#include "tile.cuh"

// What one pixel of the reduction adds to places in x and offsets in y.
template <class I, bool REMAP>
struct WgradReduction {
    const ConvParams& p;

    __device__ __forceinline__ void operator()(I entry, Place<I>& place, I& plain) const {
        const Position<I> at = position<I>(entry, p.out[0], p.out[1], p.out[2]);
        const I d = at.d * static_cast<I>(p.stride[0]), h = at.h * static_cast<I>(p.stride[1]);
        const I w = at.w * static_cast<I>(p.stride[2]);
        place = {at.n * static_cast<I>(p.x_stride[0]), d, h, w};
        if constexpr (!REMAP) place.offset += spatial_offset(d, h, w, p.x_stride);
        plain = at.n * static_cast<I>(p.y_stride[0]) + spatial_offset(at.d, at.h, at.w, p.y_stride);
    }
};

// Launch bounds: see tile.cuh; padding other than zeros would spill in float64 as well.
template <class T, int DIMS, int LAYOUT, bool REMAP, bool WIDE, class Shape>
__global__ void __launch_bounds__(Shape::THREADS, WIDE || REMAP ? 1 : blocks_per_sm<Shape>)
conv_wgrad(const T* __restrict__ x, const T* __restrict__ y, T* __restrict__ w, T* __restrict__ bias,
           compute_t<T>* __restrict__ partial, ConvParams p) {
    using I = index_t<WIDE>;
    constexpr int ALONG = LAYOUT == CONTIGUOUS ? REDUCTION : UNITS;  // pixels lie densely, or channels do
    constexpr int V = LAYOUT == VECTOR ? 16 / sizeof(T) : 1;
    using C = Core<T, Shape, ALONG, ALONG>;
    __shared__ Shared<C, I> shared;

    const int tiles = p.tiles_m * p.tiles_n, block = static_cast<int>(blockIdx.x);
    const I split = block / (tiles * p.groups), group = block / tiles % p.groups;
    const TileNumber tile = grouped_tile(block % tiles, p.tiles_m, p.tiles_n);
    const I first_row = static_cast<I>(tile.m) * C::M, first_column = static_cast<I>(tile.n) * C::N;
    const I t = p.kernel[0], r = p.kernel[1], s = p.kernel[2];
    const I all_rows = static_cast<I>(p.c) * t * r * s, rows = smaller<I>(all_rows - first_row, C::M);

    for (int i = static_cast<int>(threadIdx.x); i < C::M; i += C::THREADS) {
        shared.row[i] = no_place<I>();
        if (i >= rows) continue;
        const ChannelTap<I> at = channel_and_tap<I>(first_row + i, p.c, t, r, s, LAYOUT == CONTIGUOUS);
        const I d = at.t * static_cast<I>(p.dilation[0]) - static_cast<I>(p.pad_lo[0]);
        const I h = at.r * static_cast<I>(p.dilation[1]) - static_cast<I>(p.pad_lo[1]);
        const I width = at.s * static_cast<I>(p.dilation[2]) - static_cast<I>(p.pad_lo[2]);
        shared.row[i] = {at.channel * static_cast<I>(p.x_stride[1]), d, h, width};
        if constexpr (!REMAP) shared.row[i].offset += spatial_offset(d, h, width, p.x_stride);
        shared.result[i] = at.channel * static_cast<I>(p.w_stride[1]) + spatial_offset(at.t, at.r, at.s, p.w_stride);
    }

    const T* x_group = x + group * static_cast<I>(p.c) * static_cast<I>(p.x_stride[1]);
    const T* y_group = y + group * static_cast<I>(p.k) * static_cast<I>(p.y_stride[1]);
    const Linear<T, I> gradient{y_group, V > 1 && aligned_to_vectors(y_group),
                                static_cast<I>(p.y_stride[1]), static_cast<I>(p.k)};
    const WgradReduction<I, REMAP> fill{p};
    const I pixels = static_cast<I>(p.n) * static_cast<I>(p.out[0] * p.out[1] * p.out[2]);
    const I first = split * static_cast<I>(p.per_split), last = smaller<I>(first + static_cast<I>(p.per_split), pixels);
    C core;
    core.clear();
    typename C::Sum of_bias = 0;
    const bool sums = bias && tile.m == 0;
    if constexpr (REMAP) {
        const Remapped<T, I> gathered{x_group, p};
        accumulate<ALONG, ALONG, V>(core, shared, gathered, gradient, first_column, first, last, fill, sums,
                                    of_bias);
    } else {
        const ZeroPadded<T, I, DIMS> gathered{x_group, V > 1 && aligned_to_vectors(x_group), static_cast<I>(p.size[0]),
                                              static_cast<I>(p.size[1]), static_cast<I>(p.size[2])};
        accumulate<ALONG, ALONG, V>(core, shared, gathered, gradient, first_column, first, last, fill, sums,
                                    of_bias);
    }

    const I columns = smaller<I>(static_cast<I>(p.k) - first_column, C::N);
    const I first_channel = group * static_cast<I>(p.k) + first_column;
    const I channels = static_cast<I>(p.k) * p.groups;
    compute_t<T>* of_split = partial ? partial + split * (channels * all_rows + (bias ? channels : 0)) : nullptr;
    if (const int column = static_cast<int>(threadIdx.x); sums && column < columns) {
        if (of_split) {
            of_split[channels * all_rows + first_channel + column] = of_bias;
        } else {
            bias[first_channel + column] = from_compute<T>(of_bias);
        }
    }
    for_each_sum<UNITS>(core, shared, rows, columns, [&](int row, int column, typename C::Sum sum) {
        const I channel = first_channel + column;
        if (of_split) {
            of_split[channel * all_rows + first_row + row] = sum;
        } else {
            w[channel * static_cast<I>(p.w_stride[0]) + shared.result[row]] = from_compute<T>(sum);
        }
    });
}

// One element a thread: w and bias = the sum of `partial` over the splits, first to last, rounded once.
// Grid: cdiv(K rows + (K for a bias), blockDim) blocks.
template <class T, bool WIDE>
__global__ void __launch_bounds__(256)
conv_wgrad_sum(const compute_t<T>* __restrict__ partial, T* __restrict__ w, T* __restrict__ bias, ConvParams p) {
    using I = index_t<WIDE>;
    const I t = p.kernel[0], r = p.kernel[1], s = p.kernel[2];
    const I rows = static_cast<I>(p.c) * t * r * s, channels = static_cast<I>(p.k) * p.groups;
    const I elements = channels * rows + (bias ? channels : 0);
    const I element = static_cast<I>(blockIdx.x) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
    if (element >= elements) return;
    compute_t<T> sum = 0;
    for (int split = 0; split < p.splits; split++) sum += partial[split * elements + element];
    if (element >= channels * rows) {
        bias[element - channels * rows] = from_compute<T>(sum);
        return;
    }
    const ChannelTap<I> at = channel_and_tap<I>(element % rows, p.c, t, r, s, p.taps_inside);
    w[element / rows * static_cast<I>(p.w_stride[0]) + at.channel * static_cast<I>(p.w_stride[1]) +
      spatial_offset(at.t, at.r, at.s, p.w_stride)] = from_compute<T>(sum);
}
