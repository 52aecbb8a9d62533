// Everything that is inline PTX, one small function each, so that the kernels themselves are plain C++.
//
// CuPy's wheel ships neither cuda_fp16.h nor mma.h. tests/cuda_on_cpu replaces this one file by a host version.

// IEEE binary16 and bfloat16 as they lie in memory.
struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float f16_to_float(f16 value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}

// Round to nearest, ties to even; NaN and infinity stay.
__device__ __forceinline__ f16 float_to_f16(float value) {
    f16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}

// The product of two tiles on the tensor cores, by the 32 lanes of a warp together:
// acc (16 x 8, float32) += a (16 x 16) * b (16 x 8). Which element lies where (PTX ISA, "Matrix Fragments for
// mma.m16n8k16 with floating point type"), with row = lane / 4 and pair = 2 * (lane % 4):
//   a[0]: (row, pair), (row, pair + 1)           a[1]: the same of row + 8
//   a[2]: (row, pair + 8), (row, pair + 9)       a[3]: the same of row + 8
//   b[0]: (pair, row), (pair + 1, row)           b[1]: (pair + 8, row), (pair + 9, row)
//   acc[0], acc[1]: (row, pair), (row, pair + 1) acc[2], acc[3]: the same of row + 8
// f16 needs sm_75, which multiplies 8 deep at a time, bf16 sm_80. Where it is missing the call traps: the host must not
// choose such a kernel. HAS_MMA tells the same to a kernel at compile time.
#if __CUDA_ARCH__ >= 800
template <class T>
inline constexpr bool HAS_MMA = true;
#elif __CUDA_ARCH__ >= 750
template <class T>
inline constexpr bool HAS_MMA = false;
template <>
inline constexpr bool HAS_MMA<f16> = true;
#else
template <class T>
inline constexpr bool HAS_MMA = false;
#endif

__device__ __forceinline__ void mma_m16n8k16(float (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2], f16) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#else
    asm volatile("trap;");
#endif
}

__device__ __forceinline__ void mma_m16n8k16(float (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2], bf16) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("trap;");
#endif
}

// Four 8 x 8 tiles of 16-bit elements from shared memory, by the 32 lanes of a warp together: lane i gives the address
// (a multiple of 16 bytes) of row i % 8 of tile i / 8, and gets of each tile elements 2 * (lane % 4) and the next of
// row lane / 4. TRANSPOSED: of each tile's transpose. Needs sm_75.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(unsigned (&tile)[4], const void* row) {
#if __CUDA_ARCH__ >= 750
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
                     : "r"(address)
                     : "memory");
    }
#else
    asm volatile("trap;");
#endif
}
