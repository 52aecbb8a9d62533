// Weight gradient of a deformable convolution: an implicit GEMM over positions that samples x as it loads.
//
//     w = sum over positions of y * mask * x(position), and bias = the sum of y over images and positions
//
// For each group and tap: rows are the channels K/G of y, columns the channels of a segment of x, and the reduction
// runs over the pixels N O P Q, cut into consecutive splits of `per_split`. Corners and weights of PIXELS of them at a
// time stand in shared memory and serve all columns of the tile.
// Grid: splits * groups * (T R S) * tiles_m * tiles_n blocks, tiles_m = cdiv(K/G, M), tiles_n = segments of a group
// times cdiv(segment, N), at least 1: the first tile of columns of the first tap sums y for the bias.
//
// With more than one split, sums go unrounded to `partial` [splits][K (T R S C/G), then K for the bias], and
// conv_wgrad_sum of conv_wgrad.cu adds the splits in their order.

#include "deform.cuh"

constexpr int PIXELS = 64;  // a multiple of every core's K

template <class C, class I, int DIMS>
struct DeformWgradShared {
    Samples<typename C::Sum, I, DIMS, PIXELS> samples;
    I y_at[PIXELS];
    Tiles<C> tiles;
};

template <class T, int DIMS, bool WIDE, class Shape>
__global__ void __launch_bounds__(Shape::THREADS, 1)
conv_deform_wgrad(const T* __restrict__ y, const T* __restrict__ x, const T* __restrict__ offset,
                  const T* __restrict__ mask, T* __restrict__ w, T* __restrict__ bias,
                  compute_t<T>* __restrict__ partial, DeformParams params) {
    using I = index_t<WIDE>;
    using C = Core<compute_t<T>, Shape, UNITS, UNITS>;
    __shared__ DeformWgradShared<C, I, DIMS> shared;

    const ConvParams& p = params.conv;
    const I t = p.kernel[0], r = p.kernel[1], s = p.kernel[2], taps = t * r * s, segment = params.segment;
    const int tile_n = static_cast<int>(blockIdx.x) % p.tiles_n;
    const int tile_m = static_cast<int>(blockIdx.x) / p.tiles_n % p.tiles_m;
    const I rest = static_cast<int>(blockIdx.x) / (p.tiles_n * p.tiles_m);
    const I tap = rest % taps, group = rest / taps % p.groups, split = rest / taps / p.groups;
    const I per_segment = larger<I>(ceil_div<I>(segment, C::N), 1);
    const I first_of_segment = tile_n % per_segment * C::N;
    const I first_channel = tile_n / per_segment * segment + first_of_segment;  // of the group
    const I first_row = static_cast<I>(tile_m) * C::M, first_filter = group * static_cast<I>(p.k) + first_row;
    const int rows = static_cast<int>(smaller<I>(static_cast<I>(p.k) - first_row, C::M));
    const int columns = static_cast<int>(smaller<I>(segment - first_of_segment, C::N));
    const I in_x = group * static_cast<I>(p.c) + first_channel, x_step = p.x_stride[1], y_step = p.y_stride[1];
    const I sample = in_x / static_cast<I>(params.per_offset) * taps + tap;
    const T* source = x + in_x * x_step;
    const T* gradient = y + first_filter * y_step;
    const I pixels = static_cast<I>(p.n) * static_cast<I>(p.out[0] * p.out[1] * p.out[2]);
    const I first = split * static_cast<I>(p.per_split), last = smaller<I>(first + static_cast<I>(p.per_split), pixels);

    C core;
    core.clear();
    compute_t<T> of_bias = 0;
    const bool sums = bias && tile_n == 0 && tap == 0;
    const auto multiply = [&](int number) {
        core.multiply(shared.tiles.buffer[number]);
        if (sums && static_cast<int>(threadIdx.x) < C::M) {
            for (int k = 0; k < C::K; k++) of_bias += shared.tiles.buffer[number].a[k][threadIdx.x];
        }
    };
    int number = 0;
    for (I start = first; start < last; start += PIXELS) {
        for (int i = static_cast<int>(threadIdx.x); i < PIXELS; i += C::THREADS) {
            if (start + i >= last) continue;
            const Position<I> at = position<I>(start + i, p.out[0], p.out[1], p.out[2]);
            if (columns > 0) shared.samples.put(i, offset, mask, params, at, tap, sample);
            shared.y_at[i] = at.n * static_cast<I>(p.y_stride[0]) + spatial_offset(at.d, at.h, at.w, p.y_stride);
        }
        __syncthreads();
        for (int step = 0; step < PIXELS && start + step < last; step += C::K) {
            typename C::Buffer& buffer = shared.tiles.buffer[number];
            for_each_element<C::M, C>(y_step != 1, [&](int row, int k) {
                const bool inside = row < rows && start + step + k < last;
                buffer.a[k][row] = inside ? to_compute(gradient[shared.y_at[step + k] + row * y_step]) : 0;
            });
            for_each_element<C::N, C>(x_step != 1, [&](int column, int k) {
                const bool inside = column < columns && start + step + k < last;
                buffer.b[k][column] = inside ? shared.samples.load(source + column * x_step, step + k) : 0;
            });
            if (start + step > first) multiply(number ^ 1);
            __syncthreads();
            number ^= 1;
        }
    }
    if (first < last) multiply(number ^ 1);

    const I filters = static_cast<I>(p.k) * p.groups, c = p.c;
    compute_t<T>* of_split = partial ? partial + split * (filters * taps * c + (bias ? filters : 0)) : nullptr;
    if (const int row = static_cast<int>(threadIdx.x); sums && row < rows) {
        if (of_split) {
            of_split[filters * taps * c + first_filter + row] = of_bias;
        } else {
            bias[first_filter + row] = from_compute<T>(of_bias);
        }
    }
    stage_sums(core, shared.tiles);
    for_each_staged(shared.tiles, rows, columns, true, [&](int row, int column, compute_t<T> sum) {
        const I filter = first_filter + row, channel = first_channel + column;
        if (of_split) {
            of_split[(filter * taps + tap) * c + channel] = sum;
        } else {
            w[filter * static_cast<I>(p.w_stride[0]) + channel * static_cast<I>(p.w_stride[1]) +
              spatial_offset(tap / (r * s), tap / s % r, tap % s, p.w_stride)] = from_compute<T>(sum);
        }
    });
}
