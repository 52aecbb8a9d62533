// Depthwise convolution, one filter for each channel of the result: no GEMM, each thread sums RUN neighbours of a row.
//
//     result[n, channel, o, p, q] = activation(sum over j, t, r, s of source[n, channel / multiplier * depth + j, ...]
//                                              * filter[channel * depth + j, t, r, s] + epilogue)
//
// Forward (C/G = 1): source x, result y, multiplier K/C, depth 1. The data gradient at stride 1 is the same with y for
// x, taps in reverse (negative strides of w from its last tap on), multiplier 1 and depth K/C.
// Where the taps S of a row and the stride along it are known when compiling, a thread reads each input of its run once
// and keeps it in registers for all taps; that is for zero padding, and a row whose taps are neighbours. For S = 0 they
// are run-time values, and dilation and padding mode are any.
// Grid: one thread for each run, the axis that lies densely in the result first.

#include "conv.cuh"

constexpr int THREADS = 128;

struct DepthwiseParams {
    ConvParams conv;        // x_stride is the source's, y_stride the result's
    long long first_tap;    // offset in w of the tap that is counted as the first
    long long channels;     // of the result
    int multiplier;         // channels of the result that read the same channel of the source
    int depth;              // channels of the source that one of the result sums
    int channels_inside;    // whether channels lie densely in the result
};

template <class T, int S, int STRIDE, bool WIDE>
__global__ void __launch_bounds__(THREADS, 4)
conv_depthwise(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias,
               const T* __restrict__ scale, const T* __restrict__ shift, const T* __restrict__ residual,
               T* __restrict__ y, DepthwiseParams params) {
    using I = index_t<WIDE>;
    using Sum = compute_t<T>;
    constexpr int RUN = 4, INPUTS = S ? (RUN - 1) * STRIDE + S : 1;
    const ConvParams& p = params.conv;
    const I channels = params.channels, q = p.out[2], runs = (q + RUN - 1) / RUN;
    const I lines = static_cast<I>(p.n) * static_cast<I>(p.out[0]) * static_cast<I>(p.out[1]);
    I number = static_cast<I>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (number >= lines * channels * runs) return;

    // (line, run, channel) or (line's image, channel, line, run), the last one first
    I channel, first_q;
    Position<I> at;
    if (params.channels_inside) {
        channel = number % channels;
        number /= channels;
        first_q = number % runs * RUN;
        at = position<I>(number / runs, p.out[0], p.out[1], 1);
        at = {at.n, at.d, at.h, 0};
    } else {
        first_q = number % runs * RUN;
        number /= runs;
        at = position<I>(number, channels, p.out[0], p.out[1]);  // d is the channel here, h and w are o and p
        channel = at.d;
        at = {at.n, at.h, at.w, 0};
    }
    const I stride_w = S ? STRIDE : static_cast<I>(p.stride[2]), dilation_w = S ? 1 : static_cast<I>(p.dilation[2]);
    const I width = p.size[2], x_stride_w = p.x_stride[4], w_stride_s = p.w_stride[4];
    const I first_d = at.d * static_cast<I>(p.stride[0]) - static_cast<I>(p.pad_lo[0]);
    const I first_h = at.h * static_cast<I>(p.stride[1]) - static_cast<I>(p.pad_lo[1]);
    const I first_w = first_q * stride_w - static_cast<I>(p.pad_lo[2]);

    Sum sum[RUN] = {};
    for (int j = 0; j < params.depth; j++) {
        const I source_channel = channel / params.multiplier * params.depth + j;
        const T* image = x + (at.n * static_cast<I>(p.x_stride[0]) + source_channel * static_cast<I>(p.x_stride[1]));
        const T* filter = w + (params.first_tap + (channel * params.depth + j) * static_cast<I>(p.w_stride[0]));
        for (I t = 0; t < p.kernel[0]; t++) {
            const I d = source_index<I>(first_d + t * static_cast<I>(p.dilation[0]), p.size[0], p.padding_mode);
            if (d < 0) continue;
            for (I r = 0; r < p.kernel[1]; r++) {
                const I h = source_index<I>(first_h + r * static_cast<I>(p.dilation[1]), p.size[1], p.padding_mode);
                if (h < 0) continue;
                const T* row = image + (d * static_cast<I>(p.x_stride[2]) + h * static_cast<I>(p.x_stride[3]));
                const T* taps = filter + (t * static_cast<I>(p.w_stride[2]) + r * static_cast<I>(p.w_stride[3]));
                const auto input = [&](I i) {
                    const I shown = source_index<I>(i, width, S ? ZEROS : p.padding_mode);
                    return shown < 0 ? Sum(0) : to_compute(row[shown * x_stride_w]);
                };
                if constexpr (S > 0) {
                    Sum value[INPUTS];
#pragma unroll
                    for (int i = 0; i < INPUTS; i++) value[i] = input(first_w + i);
#pragma unroll
                    for (int s = 0; s < S; s++) {
                        const Sum tap = to_compute(taps[s * w_stride_s]);
#pragma unroll
                        for (int i = 0; i < RUN; i++) sum[i] = multiply_add(value[i * STRIDE + s], tap, sum[i]);
                    }
                } else {
                    for (I s = 0; s < p.kernel[2]; s++) {
                        const Sum tap = to_compute(taps[s * w_stride_s]);
#pragma unroll
                        for (int i = 0; i < RUN; i++) {
                            sum[i] = multiply_add(input(first_w + i * stride_w + s * dilation_w), tap, sum[i]);
                        }
                    }
                }
            }
        }
    }

    const Epilogue<T> epilogue{bias, scale, shift, residual, p.vector_stride, p.activation, p.stepwise};
    const I y_line = at.n * static_cast<I>(p.y_stride[0]) + channel * static_cast<I>(p.y_stride[1]) +
                     spatial_offset(at.d, at.h, first_q, p.y_stride);
    const I residual_line = at.n * static_cast<I>(p.residual_stride[0]) +
                            channel * static_cast<I>(p.residual_stride[1]) +
                            spatial_offset(at.d, at.h, first_q, p.residual_stride);
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        if (first_q + i >= q) continue;
        y[y_line + i * static_cast<I>(p.y_stride[4])] =
            epilogue.finish(sum[i], channel, residual_line + i * static_cast<I>(p.residual_stride[4]));
    }
}
