// Forward convolution as an implicit GEMM: y = activation((conv(x, w) + bias) * scale + shift + residual).
//
// For each group: rows are the positions N O P Q of y, columns its channels K/G, and the reduction runs over channels
// C/G and taps T R S. Taps come first where spatial axes are innermost (so do they in w), else channels.
// The gathered operand is x: row (n, o, p, q) stands at the corner o * stride - pad of its window, reduction entry
// (c, t, r, s) adds t * dilation. The plain operand is w.
// Grid: groups * tiles_m * tiles_n blocks, tiles_m = cdiv(N O P Q, M), tiles_n = cdiv(K/G, N).

#include "tile.cuh"

// What one entry (c, t, r, s) of the reduction adds to places in x and offsets in w.
template <class I, bool REMAP, bool TAPS_INSIDE>
struct FpropReduction {
    const ConvParams& p;

    __device__ __forceinline__ void operator()(I entry, Place<I>& place, I& plain) const {
        const I t = p.kernel[0], r = p.kernel[1], s = p.kernel[2];
        const ChannelTap<I> at = channel_and_tap<I>(entry, p.c, t, r, s, TAPS_INSIDE);
        const I d = at.t * static_cast<I>(p.dilation[0]), h = at.r * static_cast<I>(p.dilation[1]);
        const I w = at.s * static_cast<I>(p.dilation[2]);
        place = {at.channel * static_cast<I>(p.x_stride[1]), d, h, w};
        if constexpr (!REMAP) place.offset += spatial_offset(d, h, w, p.x_stride);
        plain = at.channel * static_cast<I>(p.w_stride[1]) + spatial_offset(at.t, at.r, at.s, p.w_stride);
    }
};

template <class T, int DIMS, int LAYOUT, bool REMAP, bool WIDE, class Shape>
__global__ void __launch_bounds__(Shape::THREADS, WIDE ? 1 : blocks_per_sm<Shape>)
conv_fprop(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, const T* __restrict__ scale,
           const T* __restrict__ shift, const T* __restrict__ residual, T* __restrict__ y, ConvParams p) {
    using I = index_t<WIDE>;
    constexpr int ALONG_A = LAYOUT == CONTIGUOUS ? UNITS : REDUCTION, ALONG_B = REDUCTION;
    constexpr int V = LAYOUT == VECTOR ? 16 / sizeof(T) : 1;
    using C = Core<T, Shape, ALONG_A, ALONG_B>;
    __shared__ Shared<C, I> shared;

    const int tiles = p.tiles_m * p.tiles_n, block = static_cast<int>(blockIdx.x);
    const I group = block / tiles;
    const TileNumber tile = grouped_tile(block % tiles, p.tiles_m, p.tiles_n);
    const I first_row = static_cast<I>(tile.m) * C::M, first_column = static_cast<I>(tile.n) * C::N;
    const I o = p.out[0], rows_p = p.out[1], q = p.out[2];
    const I rows = smaller<I>(static_cast<I>(p.n) * o * rows_p * q - first_row, C::M);

    for (int i = static_cast<int>(threadIdx.x); i < C::M; i += C::THREADS) {
        shared.row[i] = no_place<I>();
        if (i >= rows) continue;
        const Position<I> at = position<I>(first_row + i, o, rows_p, q);
        const I d = at.d * static_cast<I>(p.stride[0]) - static_cast<I>(p.pad_lo[0]);
        const I h = at.h * static_cast<I>(p.stride[1]) - static_cast<I>(p.pad_lo[1]);
        const I width = at.w * static_cast<I>(p.stride[2]) - static_cast<I>(p.pad_lo[2]);
        shared.row[i] = {at.n * static_cast<I>(p.x_stride[0]), d, h, width};
        if constexpr (!REMAP) shared.row[i].offset += spatial_offset(d, h, width, p.x_stride);
        shared.result[i] = at.n * static_cast<I>(p.y_stride[0]) + spatial_offset(at.d, at.h, at.w, p.y_stride);
        shared.residual[i] =
            at.n * static_cast<I>(p.residual_stride[0]) + spatial_offset(at.d, at.h, at.w, p.residual_stride);
    }

    const T* x_group = x + group * static_cast<I>(p.c) * static_cast<I>(p.x_stride[1]);
    const T* w_group = w + group * static_cast<I>(p.k) * static_cast<I>(p.w_stride[0]);
    const Linear<T, I> weights{w_group, V > 1 && aligned_to_vectors(w_group),
                               static_cast<I>(p.w_stride[0]), static_cast<I>(p.k)};
    const FpropReduction<I, REMAP, LAYOUT == CONTIGUOUS> fill{p};
    const I reduction = static_cast<I>(p.c) * static_cast<I>(p.kernel[0] * p.kernel[1] * p.kernel[2]);
    C core;
    core.clear();
    typename C::Sum unused = 0;
    if constexpr (REMAP) {
        const Remapped<T, I> gathered{x_group, p};
        accumulate<ALONG_A, ALONG_B, V>(core, shared, gathered, weights, first_column, I(0), reduction, fill, false,
                                        unused);
    } else {
        const ZeroPadded<T, I, DIMS> gathered{x_group, V > 1 && aligned_to_vectors(x_group), static_cast<I>(p.size[0]),
                                              static_cast<I>(p.size[1]), static_cast<I>(p.size[2])};
        accumulate<ALONG_A, ALONG_B, V>(core, shared, gathered, weights, first_column, I(0), reduction, fill, false,
                                        unused);
    }

    const Epilogue<T> epilogue{bias, scale, shift, residual, p.vector_stride, p.activation, p.stepwise};
    const I columns = smaller<I>(static_cast<I>(p.k) - first_column, C::N);
    const I first_channel = group * static_cast<I>(p.k) + first_column;
    constexpr int ALONG_RESULT = LAYOUT == CONTIGUOUS ? UNITS : REDUCTION;
    for_each_sum<ALONG_RESULT>(core, shared, rows, columns, [&](int row, int column, typename C::Sum sum) {
        const I channel = first_channel + column;
        const I at = shared.result[row] + channel * static_cast<I>(p.y_stride[1]);
        y[at] = epilogue.finish(sum, channel, shared.residual[row] + channel * static_cast<I>(p.residual_stride[1]));
    });
}
