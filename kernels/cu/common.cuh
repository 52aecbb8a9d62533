// What every kernel uses: storage types, the types in which they compute, wide loads, and a little arithmetic.
//
// NVRTC compiles this without any header of CUDA or of C++, and g++ behind tests/cuda_on_cpu compiles it unchanged.

#include "ptx.cuh"

// ---------------------------------------------------------------- storage types, and the types in which they compute

template <class A, class B>
inline constexpr bool same_type = false;
template <class A>
inline constexpr bool same_type<A, A> = true;

// 16-bit types are read and written; everything between is float32. Integers narrower than 32 bits compute in 32.
template <class T>
struct Compute {
    using type = float;
};
template <>
struct Compute<double> {
    using type = double;
};
template <>
struct Compute<signed char> {
    using type = int;
};
template <>
struct Compute<unsigned char> {
    using type = int;
};
template <>
struct Compute<short> {
    using type = int;
};
template <>
struct Compute<int> {
    using type = int;
};
template <>
struct Compute<long long> {
    using type = long long;
};

template <class T>
using compute_t = typename Compute<T>::type;

// bfloat16 is the upper half of a float32, so widening is exact.
__device__ __forceinline__ float bf16_to_float(bf16 value) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

// Round to nearest, ties to even; a NaN stays one (rounding its bits could carry into an infinity or a zero).
__device__ __forceinline__ bf16 float_to_bf16(float value) {
    const unsigned bits = __float_as_uint(value);
    const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return bf16{static_cast<unsigned short>(value != value ? 0x7fc0u : rounded)};
}

template <class T>
__device__ __forceinline__ compute_t<T> to_compute(T value) {
    if constexpr (same_type<T, f16>) {
        return f16_to_float(value);
    } else if constexpr (same_type<T, bf16>) {
        return bf16_to_float(value);
    } else {
        return value;
    }
}

// The only place where a result is rounded to its storage type. Integers are converted as C++ does.
template <class T, class V>
__device__ __forceinline__ T from_compute(V value) {
    if constexpr (same_type<T, f16>) {
        return float_to_f16(static_cast<float>(value));
    } else if constexpr (same_type<T, bf16>) {
        return float_to_bf16(static_cast<float>(value));
    } else {
        return static_cast<T>(value);
    }
}

// ------------------------------------------------------------------------------------------- indices, wide loads

// Offsets: 32 bits where the problem proves that they fit, else 64.
template <bool WIDE>
struct Index {
    using type = int;
};
template <>
struct Index<true> {
    using type = long long;
};

template <bool WIDE>
using index_t = typename Index<WIDE>::type;

// BYTES (4, 8 or 16) that one instruction loads or stores; the address must be a multiple of BYTES.
template <int BYTES>
struct alignas(BYTES) Vector {
    unsigned word[BYTES / 4];
};

template <int BYTES>
__device__ __forceinline__ Vector<BYTES> load_vector(const void* address) {
    return *static_cast<const Vector<BYTES>*>(address);
}

template <int BYTES>
__device__ __forceinline__ void store_vector(void* address, Vector<BYTES> value) {
    *static_cast<Vector<BYTES>*>(address) = value;
}

// Two 16-bit elements as one 32-bit word, the first in the low half, as the fragments of mma want them.
template <class T>
__device__ __forceinline__ unsigned pack_two(T low, T high) {
    return static_cast<unsigned>(low.bits) | static_cast<unsigned>(high.bits) << 16;
}

// ---------------------------------------------------------------------------------------------------- arithmetic

template <class T>
__device__ __forceinline__ constexpr T smaller(T a, T b) {
    return b < a ? b : a;
}

template <class T>
__device__ __forceinline__ constexpr T larger(T a, T b) {
    return a < b ? b : a;
}

// Quotients of integers by a positive divisor, rounded down and up, and the remainder in [0, divisor).
template <class T>
__device__ __forceinline__ constexpr T floor_div(T value, T divisor) {
    const T quotient = value / divisor;
    return quotient * divisor > value ? quotient - 1 : quotient;
}

template <class T>
__device__ __forceinline__ constexpr T ceil_div(T value, T divisor) {
    const T quotient = value / divisor;
    return quotient * divisor < value ? quotient + 1 : quotient;
}

template <class T>
__device__ __forceinline__ constexpr T floor_mod(T value, T divisor) {
    const T rest = value % divisor;
    return rest < 0 ? rest + divisor : rest;
}

// For kernels that are templates over float and double: the contraction to fma is written out, so that hosts agree.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }
