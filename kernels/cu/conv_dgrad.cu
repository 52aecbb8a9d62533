// Data gradient and transposed convolution as an implicit GEMM for each stride phase, all phases in one launch:
// x = activation((dgrad(y, w) + bias) * scale + shift + residual).
//
// The convolution adds x[i] * w[t] to y[o] where i + pad = o * stride + t * dilation, along each axis. For its data
// gradient, position i of x gathers from the taps with t * dilation = i + pad (modulo stride). Positions with the same
// residue of i + pad modulo stride, a phase, share these taps, so each phase is a dense convolution of its own and
// multiplies nothing in vain:
//   - with g = gcd(stride, dilation), residues that g does not divide have no tap: their positions get zero or bias;
//   - the others have every step-th tap, step = stride / g, from a first one below step; phases and first taps are one
//     to one;
//   - one such tap further on, y is read shift = dilation / g positions lower.
// Padding other than zeros adds a sum over the images of each position, the padded coordinates that show it. For one
// image all rows of a phase have the same taps.
//
// For each phase and group: rows are the positions N D H W of x in the phase, columns the channels C/G, and the
// reduction runs over channels K/G and the phase's taps. The gathered operand is y, the plain one w.
// Grid: stride_d * stride_h * stride_w * groups * tiles_m * tiles_n blocks, phases with most taps first, with tiles_m
// enough for the largest phase and tiles_n = cdiv(C/G, N).

#include "tile.cuh"

// What a phase is along one axis.
template <class I>
struct PhaseAxis {
    I start, count;  // first position of x, and how many
};

// Phases with taps come first, by their first tap; there are `step` of them. One beyond a small input has no position.
template <class I>
__device__ __forceinline__ PhaseAxis<I> phase_axis(I number, I size, I pad, I stride, I dilation, I step) {
    const I gcd = stride / step;
    I residue = number * (dilation % stride) % stride;
    if (number >= step) residue = (number - step) / (gcd - 1) * gcd + 1 + (number - step) % (gcd - 1);
    const I start = floor_mod(residue - pad, stride);
    return {start, (size - start + stride - 1) / stride};
}

// Padded coordinate number `image` that may show input position `i`; number 0 is `i` itself.
template <class I>
__device__ __forceinline__ I image_coordinate(I i, I image, I size, I pad_lo, I pad_hi, int padding_mode) {
    if (image == 0) return i;
    if (padding_mode == REFLECT) return image == 1 ? -i : 2 * (size - 1) - i;
    if (padding_mode == REPLICATE) return image <= pad_lo ? -image : size - 1 + image - pad_lo;
    const I wraps = (pad_hi + size - 1) / size;
    return i + (image <= wraps ? image : wraps - image) * size;
}

// How an axis of w and y reaches one image of the positions of a phase.
template <class I>
struct ImageAxis {
    I image, size, pad_lo, pad_hi, stride, dilation;
    int padding_mode;
    I first, taps, step;  // first tap, how many, and the distance between two

    // The first tap solves tap * dilation = coordinate + pad (modulo stride); `inverse` is that of dilation / gcd.
    __device__ __forceinline__ ImageAxis(const ConvParams& p, int axis, I image_, I start)
        : image(image_), size(p.size[axis]), pad_lo(p.pad_lo[axis]), pad_hi(p.pad_hi[axis]), stride(p.stride[axis]),
          dilation(p.dilation[axis]), padding_mode(p.padding_mode), step(p.step[axis]) {
        const I gcd = stride / step;
        const I coordinate = image_coordinate(start, image, size, pad_lo, pad_hi, padding_mode);
        const I residue = floor_mod(coordinate + pad_lo, stride);
        first = residue / gcd * static_cast<I>(p.inverse[axis]) % step;
        taps = residue % gcd == 0 ? (static_cast<I>(p.kernel[axis]) - first + step - 1) / step : 0;
    }

    // The position of y that the first tap reads at position `i` of x.
    __device__ __forceinline__ I source(I i) const {
        const I coordinate = image_coordinate(i, image, size, pad_lo, pad_hi, padding_mode);
        return (coordinate + pad_lo - first * dilation) / stride;
    }

    // Whether the image is inside the padded input, shows `i`, and is not what image 0 is.
    __device__ __forceinline__ bool shown(I i) const {
        const I coordinate = image_coordinate(i, image, size, pad_lo, pad_hi, padding_mode);
        if (coordinate < -pad_lo || coordinate >= size + pad_hi) return false;
        return source_index(coordinate, size, padding_mode) == i && (image == 0 || coordinate != i);
    }

    __device__ __forceinline__ I shift() const { return dilation * step / stride; }
};

// What one entry (k, t, r, s) of the reduction of an image adds to places in y and offsets in w.
template <class I, bool TAPS_INSIDE>
struct DgradReduction {
    const ConvParams& p;
    const ImageAxis<I>&d, &h, &w;

    __device__ __forceinline__ void operator()(I entry, Place<I>& place, I& plain) const {
        const ChannelTap<I> at = channel_and_tap<I>(entry, p.k, d.taps, h.taps, w.taps, TAPS_INSIDE);
        const I o = -at.t * d.shift(), rows_p = -at.r * h.shift(), q = -at.s * w.shift();
        place = {at.channel * static_cast<I>(p.y_stride[1]) + spatial_offset(o, rows_p, q, p.y_stride), o, rows_p, q};
        plain = at.channel * static_cast<I>(p.w_stride[0]) +
                spatial_offset(d.first + at.t * d.step, h.first + at.r * h.step, w.first + at.s * w.step, p.w_stride);
    }
};

// Launch bounds: see tile.cuh; padding other than zeros would spill in float64 as well.
template <class T, int DIMS, int LAYOUT, bool IMAGES, bool WIDE, class Shape>
__global__ void __launch_bounds__(Shape::THREADS, WIDE || IMAGES ? 1 : blocks_per_sm<Shape>)
conv_dgrad(const T* __restrict__ y, const T* __restrict__ w, const T* __restrict__ bias, const T* __restrict__ scale,
           const T* __restrict__ shift, const T* __restrict__ residual, T* __restrict__ x, ConvParams p) {
    using I = index_t<WIDE>;
    constexpr int ALONG_A = LAYOUT == CONTIGUOUS ? UNITS : REDUCTION, ALONG_B = UNITS;
    constexpr int V = LAYOUT == VECTOR ? 16 / sizeof(T) : 1;
    using C = Core<T, Shape, ALONG_A, ALONG_B>;
    __shared__ Shared<C, I> shared;

    const int tiles = p.tiles_m * p.tiles_n, block = static_cast<int>(blockIdx.x);
    const int phase = block / (tiles * p.groups);
    const I group = block / tiles % p.groups;
    const TileNumber tile = grouped_tile(block % tiles, p.tiles_m, p.tiles_n);
    const I first_row = static_cast<I>(tile.m) * C::M, first_column = static_cast<I>(tile.n) * C::N;

    PhaseAxis<I> phases[3];
    int number = phase;
#pragma unroll
    for (int axis = 2; axis >= 0; axis--) {
        const int stride = static_cast<int>(p.stride[axis]);
        phases[axis] =
            phase_axis<I>(number % stride, p.size[axis], p.pad_lo[axis], stride, p.dilation[axis], p.step[axis]);
        number /= stride;
    }
    const I of_phase = static_cast<I>(p.n) * phases[0].count * phases[1].count * phases[2].count;
    const I rows = smaller<I>(of_phase - first_row, C::M);
    if (rows <= 0) return;  // smaller phases have tiles without rows

    const T* y_group = y + group * static_cast<I>(p.k) * static_cast<I>(p.y_stride[1]);
    const T* w_group = w + group * static_cast<I>(p.k) * static_cast<I>(p.w_stride[0]);
    const ZeroPadded<T, I, DIMS> gathered{y_group, V > 1 && aligned_to_vectors(y_group), static_cast<I>(p.out[0]),
                                          static_cast<I>(p.out[1]), static_cast<I>(p.out[2])};
    const Linear<T, I> weights{w_group, V > 1 && aligned_to_vectors(w_group),
                               static_cast<I>(p.w_stride[1]), static_cast<I>(p.c)};
    C core;
    core.clear();
    typename C::Sum unused = 0;

    const auto add_image = [&](I image_d, I image_h, I image_w) {
        const ImageAxis<I> d(p, 0, image_d, phases[0].start), h(p, 1, image_h, phases[1].start);
        const ImageAxis<I> width(p, 2, image_w, phases[2].start);
        for (int i = static_cast<int>(threadIdx.x); i < C::M; i += C::THREADS) {
            shared.row[i] = no_place<I>();
            if (i >= rows) continue;
            const Position<I> at = position<I>(first_row + i, phases[0].count, phases[1].count, phases[2].count);
            const I x_d = phases[0].start + at.d * d.stride, x_h = phases[1].start + at.h * h.stride;
            const I x_w = phases[2].start + at.w * width.stride;
            shared.result[i] = at.n * static_cast<I>(p.x_stride[0]) + spatial_offset(x_d, x_h, x_w, p.x_stride);
            shared.residual[i] =
                at.n * static_cast<I>(p.residual_stride[0]) + spatial_offset(x_d, x_h, x_w, p.residual_stride);
            if (IMAGES && !(d.shown(x_d) && h.shown(x_h) && width.shown(x_w))) continue;
            const I o = d.source(x_d), rows_p = h.source(x_h), q = width.source(x_w);
            const I image = at.n * static_cast<I>(p.y_stride[0]);
            shared.row[i] = {image + spatial_offset(o, rows_p, q, p.y_stride), o, rows_p, q};
        }
        bool useful = true;
        if constexpr (IMAGES) {  // most tiles have no other image than the positions themselves
            __syncthreads();
            useful = false;
            for (int i = 0; i < C::M; i++) useful = useful || is_place(shared.row[i]);
        }
        const I reduction = useful ? static_cast<I>(p.k) * d.taps * h.taps * width.taps : 0;
        const DgradReduction<I, LAYOUT == CONTIGUOUS> fill{p, d, h, width};
        accumulate<ALONG_A, ALONG_B, V>(core, shared, gathered, weights, first_column, I(0), reduction, fill, false,
                                        unused);
        if constexpr (IMAGES) __syncthreads();  // where there was no reduction, rows are still being looked at
    };
    if constexpr (IMAGES) {
        for (I d = 0; d < p.images[0]; d++) {
            for (I h = 0; h < p.images[1]; h++) {
                for (I width = 0; width < p.images[2]; width++) add_image(d, h, width);
            }
        }
    } else {
        add_image(0, 0, 0);
    }

    const Epilogue<T> epilogue{bias, scale, shift, residual, p.vector_stride, p.activation, p.stepwise};
    const I columns = smaller<I>(static_cast<I>(p.c) - first_column, C::N);
    const I first_channel = group * static_cast<I>(p.c) + first_column;
    constexpr int ALONG_RESULT = LAYOUT == CONTIGUOUS ? UNITS : REDUCTION;
    for_each_sum<ALONG_RESULT>(core, shared, rows, columns, [&](int row, int column, typename C::Sum sum) {
        const I channel = first_channel + column;
        const I at = shared.result[row] + channel * static_cast<I>(p.x_stride[1]);
        x[at] = epilogue.finish(sum, channel, shared.residual[row] + channel * static_cast<I>(p.residual_stride[1]));
    });
}
