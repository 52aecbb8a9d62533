// Deformable convolution, forward: an implicit GEMM that samples x between its elements while it loads.
//
//     y = sum over taps and channels of w * mask * x(position) + bias
//
// The position of an output and a tap along an axis is output * stride - pad + tap * dilation + offset.
// For each group: rows are the positions N O P Q of y, columns its channels K/G, and the reduction runs over the
// segments of the group, their taps and their channels. Of a segment and a tap the corners and weights of the rows are
// computed once, and serve all its channels.
// Grid: groups * tiles_m * tiles_n blocks, tiles_m = cdiv(N O P Q, M), tiles_n = cdiv(K/G, N).

#include "deform.cuh"

template <class C, class I, int DIMS>
struct DeformFpropShared {
    Samples<typename C::Sum, I, DIMS, C::M> samples;
    Position<I> row[C::M];
    Tiles<C> tiles;
};

template <class T, int DIMS, bool WIDE, class Shape>
__global__ void __launch_bounds__(Shape::THREADS, 1)
conv_deform_fprop(const T* __restrict__ x, const T* __restrict__ offset, const T* __restrict__ mask,
                  const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y, DeformParams params) {
    using I = index_t<WIDE>;
    using C = Core<compute_t<T>, Shape, UNITS, UNITS>;
    __shared__ DeformFpropShared<C, I, DIMS> shared;

    const ConvParams& p = params.conv;
    const int count = p.tiles_m * p.tiles_n, block = static_cast<int>(blockIdx.x);
    const I group = block / count;
    const TileNumber tile = grouped_tile(block % count, p.tiles_m, p.tiles_n);
    const I first_row = static_cast<I>(tile.m) * C::M, first_column = static_cast<I>(tile.n) * C::N;
    const I o = p.out[0], out_p = p.out[1], q = p.out[2], t = p.kernel[0], r = p.kernel[1], s = p.kernel[2];
    const I taps = t * r * s, segment = params.segment, x_step = p.x_stride[1];
    const int rows = static_cast<int>(smaller<I>(static_cast<I>(p.n) * o * out_p * q - first_row, C::M));
    const int columns = static_cast<int>(smaller<I>(static_cast<I>(p.k) - first_column, C::N));
    for (int i = static_cast<int>(threadIdx.x); i < rows; i += C::THREADS) {
        shared.row[i] = position<I>(first_row + i, o, out_p, q);
    }

    const I first_filter = group * static_cast<I>(p.k) + first_column;
    C core;
    core.clear();
    int number = 0;
    bool begun = false;
    for (I first = 0; first < p.c; first += segment) {
        const I first_channel = group * static_cast<I>(p.c) + first;
        const T* source = x + first_channel * x_step;
        for (I tap = 0; tap < taps; tap++) {
            const I sample = first_channel / static_cast<I>(params.per_offset) * taps + tap;
            for (int i = static_cast<int>(threadIdx.x); i < rows; i += C::THREADS) {
                shared.samples.put(i, offset, mask, params, shared.row[i], tap, sample);
            }
            __syncthreads();
            const T* weights = w + (first_filter * static_cast<I>(p.w_stride[0]) +
                                    first * static_cast<I>(p.w_stride[1]) +
                                    spatial_offset(tap / (r * s), tap / s % r, tap % s, p.w_stride));
            for (I chunk = 0; chunk < segment; chunk += C::K) {
                typename C::Buffer& buffer = shared.tiles.buffer[number];
                for_each_element<C::M, C>(x_step == 1, [&](int row, int k) {
                    const bool inside = row < rows && chunk + k < segment;
                    buffer.a[k][row] = inside ? shared.samples.load(source + (chunk + k) * x_step, row) : 0;
                });
                for_each_element<C::N, C>(true, [&](int column, int k) {
                    const bool inside = column < columns && chunk + k < segment;
                    buffer.b[k][column] =
                        inside ? to_compute(weights[column * static_cast<I>(p.w_stride[0]) +
                                                    (chunk + k) * static_cast<I>(p.w_stride[1])])
                               : 0;
                });
                if (begun) core.multiply(shared.tiles.buffer[number ^ 1]);
                __syncthreads();
                number ^= 1;
                begun = true;
            }
        }
    }
    if (begun) core.multiply(shared.tiles.buffer[number ^ 1]);

    stage_sums(core, shared.tiles);
    for_each_staged(shared.tiles, rows, columns, p.y_stride[1] == 1, [&](int row, int column, compute_t<T> sum) {
        const I filter = first_filter + column;
        const Position<I> at = shared.row[row];
        if (bias) sum += to_compute(bias[filter * static_cast<I>(p.vector_stride[0])]);
        y[at.n * static_cast<I>(p.y_stride[0]) + filter * static_cast<I>(p.y_stride[1]) +
          spatial_offset(at.d, at.h, at.w, p.y_stride)] = from_compute<T>(sum);
    });
}
