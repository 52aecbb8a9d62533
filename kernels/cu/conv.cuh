// What the kernels of every pass of a convolution share: their arguments, padding modes and the epilogue.

#include "common.cuh"

// One convolution in three spatial axes, of which the leading ones of 1-D and 2-D have size 1. Strides are in elements.
// gpuconv/backends/cupy/conv.py mirrors this struct.
struct ConvParams {
    long long x_stride[5];         // N C D H W
    long long w_stride[5];         // K C T R S
    long long y_stride[5];         // N K O P Q
    long long residual_stride[5];  // as those of the result
    long long size[3];             // D H W
    long long out[3];              // O P Q
    long long kernel[3];           // T R S
    long long stride[3];
    long long dilation[3];
    long long pad_lo[3];
    long long pad_hi[3];
    long long step[3];           // dgrad: from one tap of a phase to its next, stride / gcd(stride, dilation)
    long long inverse[3];        // dgrad: the inverse of dilation / gcd(stride, dilation) modulo step
    long long images[3];         // dgrad: how many padded coordinates may show one position
    long long vector_stride[3];  // of bias, scale and shift
    long long n;
    long long c;          // C/G
    long long k;          // K/G
    long long per_split;  // wgrad: reduction of one split
    int groups;
    int tiles_m;
    int tiles_n;
    int splits;       // wgrad
    int taps_inside;  // wgrad: order of partial sums, see channel_and_tap
    int padding_mode;
    int activation;
    int stepwise;  // whether a 16-bit result is rounded after each step of the epilogue
};

constexpr int ZEROS = 0, REFLECT = 1, REPLICATE = 2, CIRCULAR = 3;

// The input position that padded coordinate `i` shows, -1 for a zero. Reflection happens once at each edge (pads are
// smaller than the input), circular padding wraps any number of times.
template <class I>
__device__ __forceinline__ I source_index(I i, I size, int padding_mode) {
    if (padding_mode == REFLECT) {
        i = i < 0 ? -i : i;
        return i >= size ? 2 * (size - 1) - i : i;
    }
    if (padding_mode == REPLICATE) return smaller(larger(i, I(0)), size - 1);
    if (padding_mode == CIRCULAR) return floor_mod(i, size);
    return i < 0 || i >= size ? -1 : i;
}

// What depends on the position alone of an offset: sum of index times stride along three axes.
template <class I>
__device__ __forceinline__ I spatial_offset(I d, I h, I w, const long long (&stride)[5]) {
    return d * static_cast<I>(stride[2]) + h * static_cast<I>(stride[3]) + w * static_cast<I>(stride[4]);
}

// A channel and a tap, counted from 0 in a reduction (or rows) of all of them, taps or channels first.
template <class I>
struct ChannelTap {
    I channel, t, r, s;
};

template <class I>
__device__ __forceinline__ ChannelTap<I> channel_and_tap(I number, I channels, I t, I r, I s, bool taps_inside) {
    const I taps = t * r * s;
    const I tap = taps_inside ? number % taps : number / channels;
    const I channel = taps_inside ? number / taps : number % channels;
    return {channel, tap / (r * s), tap / s % r, tap % s};
}

// Positions counted from 0, the last axis first: an image and three coordinates.
template <class I>
struct Position {
    I n, d, h, w;
};

template <class I>
__device__ __forceinline__ Position<I> position(I number, I d, I h, I w) {
    const I lines = number / w, planes = lines / h;
    return {planes / d, planes % d, lines % h, number % w};
}

// ---------------------------------------------------------------------------------------------------------- epilogue

// Numbers of the activations, in the order in which cupy_conv.py lists them.
constexpr int RELU = 1, RELU6 = 2, HARDSWISH = 3, SILU = 4, GELU = 5, GELU_TANH = 6, SIGMOID = 7, TANH = 8;

// 1 / (1 + exp(-x)) without overflow on either side.
template <class Sum>
__device__ __forceinline__ Sum sigmoid(Sum x) {
    const Sum e = exp(x < 0 ? x : -x);
    return (x < 0 ? e : Sum(1)) / (1 + e);
}

// An activation (formulas of torch.nn.functional). Comparisons are such that NaN stays NaN.
template <class Sum>
__device__ __forceinline__ Sum activate(Sum x, int activation) {
    switch (activation) {
        case RELU: return x < 0 ? Sum(0) : x;
        case RELU6: return x < 0 ? Sum(0) : x > 6 ? Sum(6) : x;
        case HARDSWISH: return x * (x + 3 < 0 ? Sum(0) : x + 3 > 6 ? Sum(6) : x + 3) / 6;
        case SILU: return x * sigmoid(x);
        case GELU: return Sum(0.5) * x * (1 + erf(x * Sum(0.7071067811865476)));
        case GELU_TANH: return Sum(0.5) * x * (1 + tanh(Sum(0.7978845608028654) * (x + Sum(0.044715) * x * x * x)));
        case SIGMOID: return sigmoid(x);
        case TANH: return tanh(x);
        default: return x;
    }
}

// activation((sum + bias) * scale + shift + residual); what is a null pointer is left out.
template <class T>
struct Epilogue {
    const T* bias;  // and scale and shift: one number per channel
    const T* scale;
    const T* shift;
    const T* residual;
    const long long (&vector_stride)[3];
    int activation;
    int stepwise;

    // What a store of T between two steps leaves of a number.
    __device__ __forceinline__ compute_t<T> stored(compute_t<T> sum) const {
        if constexpr (sizeof(T) == 2) return stepwise ? to_compute(from_compute<T>(sum)) : sum;
        return sum;
    }

    template <class I>
    __device__ __forceinline__ T finish(compute_t<T> sum, I channel, I residual_offset) const {
        sum = stored(sum);
        if (bias) sum = stored(sum + to_compute(bias[channel * static_cast<I>(vector_stride[0])]));
        if (scale) sum = stored(sum * to_compute(scale[channel * static_cast<I>(vector_stride[1])]));
        if (shift) sum = stored(sum + to_compute(shift[channel * static_cast<I>(vector_stride[2])]));
        if (residual) sum = stored(sum + to_compute(residual[residual_offset]));
        return from_compute<T>(activate(sum, activation));
    }
};
