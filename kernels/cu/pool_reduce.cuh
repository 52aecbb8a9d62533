// What the elements of a window become: the largest and its number, an average, or the root of a sum of powers.
#include "pool.cuh"

// Return x, or |x| or -|x| for the largest and the smallest magnitude.
template <class V>
__device__ __forceinline__ V compared(V x, int magnitude) {
    if (magnitude == 0) return x;
    const V size = x < V(0) ? -x : x;
    return magnitude > 0 ? size : -size;
}

// Find the largest element of a box and its number, for LANES neighbouring planes: taps in the order D H W. The first of
// equal ones stays, NaN beats numbers and the last NaN stays. Nothing but the smallest number gives the first tap.
template <int LANES, class T, class I>
__device__ __forceinline__ void largest_in(compute_t<T> (&best)[LANES], I (&number)[LANES], const T* plane,
                                           const Box<I>& box, bool aligned, const PoolParams& p) {
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        best[i] = compute_t<T>(p.lowest);
        number[i] = number_of<I>(p, box.d.begin, box.h.begin, box.w.begin);
    }
    const I step = box.w.step * I(p.x_stride_w);
    for (I t = box.d.begin; t < box.d.end; ++t) {
        const I slice = (box.d.start + t * box.d.step) * I(p.x_stride_d);
        for (I r = box.h.begin; r < box.h.end; ++r) {
            I offset = slice + (box.h.start + r * box.h.step) * I(p.x_stride_h);
            offset += (box.w.start + box.w.begin * box.w.step) * I(p.x_stride_w);
            I tap = number_of<I>(p, t, r, box.w.begin);
            for (I s = box.w.begin; s < box.w.end; ++s) {
                compute_t<T> seen[LANES];
                load_lanes<LANES>(seen, plane + offset, aligned);
#pragma unroll
                for (int i = 0; i < LANES; ++i) {
                    const compute_t<T> value = compared(seen[i], p.magnitude);
                    const bool better = value > best[i] || value != value;
                    best[i] = better ? value : best[i];
                    number[i] = better ? tap : number[i];
                }
                offset += step;
                tap += I(p.number_s);
            }
        }
    }
    const I corner = corner_of(p, box);
#pragma unroll
    for (int i = 0; i < LANES; ++i) number[i] = inside_plane(p, number[i] + corner);
}

enum Finish { AVERAGE, ROOT, SLOPE };

// The element type of what FINISH leaves: slopes wait for a second launch and are not rounded.
template <class T, Finish FINISH>
struct Finished {
    using type = T;
};

template <class T>
struct Finished<T, SLOPE> {
    using type = compute_t<T>;
};

// Return x ** exponent. Small whole powers are products; others go by float64, as powf is several units off.
template <class V>
__device__ __forceinline__ V power(V x, double exponent) {
    if (exponent == 1.0) return x;
    if (exponent == 2.0) return x * x;
    if (exponent == 3.0) return x * x * x;
    return V(pow(double(x), exponent));
}

// Return what element x adds to the sum of its window.
template <Finish FINISH, class V>
__device__ __forceinline__ V summand(V x, double norm) {
    if constexpr (FINISH == AVERAGE) return x;
    else return power(x, norm);
}

// Return the sum as if the window had all T R S taps: what ceil mode cut off counts like the mean of the rest. The sum
// of -0 becomes 0, so that it does not turn the sign of an infinite root.
template <class V>
__device__ __forceinline__ V whole_sum(V total, long long divisor, const PoolParams& p) {
    const long long taps = (long long)p.t * p.r * p.s;
    return (divisor == taps ? total : total / V(divisor) * V(taps)) + V(0);
}

// Return the average of a window (of integers cut off towards zero), or the root of its sum of powers.
template <Finish FINISH, class V>
__device__ __forceinline__ V finished(V total, long long divisor, const PoolParams& p) {
    if constexpr (FINISH == AVERAGE) return total / V(divisor);
    else {
        const V whole = whole_sum(total, divisor, p);
        if (p.norm == 1.0) return whole;
        if (p.norm != 2.0) return power(whole, 1.0 / p.norm);
        if constexpr (sizeof(V) == 4) return sqrtf(whole);
        else return sqrt(whole);
    }
}

// Return `grad` times the derivative of the root by the sum of powers, over the derivative of those powers' own part
// that differs between elements; 0 where the sum is 0, as in torch.
template <class V>
__device__ __forceinline__ V slope(V total, V grad, long long divisor, const PoolParams& p) {
    const long long taps = (long long)p.t * p.r * p.s;
    const double steep = pow(double(whole_sum(total, divisor, p)), 1.0 / p.norm - 1.0);
    return total == V(0) ? V(0) : grad * V(steep * (double(taps) / p.norm / double(divisor)));
}
