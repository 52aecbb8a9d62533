// One block's tile of an implicit GEMM, which all three passes of a convolution share:
//
//     result[row, column] = sum over the reduction of gathered[row, reduction] * plain[reduction, column]
//
// The gathered operand is an activation tensor read at shifted positions. Its offsets, and the coordinates that decide
// whether it is padding, are sums of a part that depends on the row and one that depends on the reduction alone. So
// both parts stand in shared memory (Place: one for each row of the tile, and TABLE of the reduction at a time), and an
// element costs a few additions and comparisons, no division, whatever the pass, the strides and the dilation. The
// plain operand has no bounds but its size. It is linear in the column; its offsets of the reduction share the table.
//
// A step of the reduction is K deep. Threads bring the elements of the next step from global memory into registers
// while they multiply those of the last from shared memory (two buffers, one barrier a step). How they multiply is the
// core: Plain has each thread keep a block of sums, Tensor has each warp keep tiles of the tensor cores' mma. At the
// end sums pass through shared memory, so that they are stored in the order in which the result lies, with epilogue.
//
// Launch bounds ask for as many blocks on a multiprocessor as registers allow: left alone, ptxas spills some registers
// to fit one more. Kernels with 64-bit offsets, and those of padding other than zeros in the gradients, ask for one.

#include "conv.cuh"

// Entries of the reduction that stand in shared memory at a time. Every core's K divides it.
constexpr int TABLE = 128;

// Which axis of an operand neighbouring threads follow when they read it: the one along which it lies densely.
constexpr int UNITS = 0;      // rows of the gathered operand, columns of the plain one
constexpr int REDUCTION = 1;

// How the tensors lie, which decides the order of the reduction and who reads what.
constexpr int CONTIGUOUS = 0;     // spatial axes innermost
constexpr int CHANNELS_LAST = 1;  // channels innermost
constexpr int VECTOR = 2;         // channels innermost, in runs of whole vectors of 16 bytes

// Shapes of cores, as they stand in the names of kernels: tile M x N, and the part that a thread or a warp has of it.
template <int M_, int N_, int THREAD_M_, int THREAD_N_>
struct Plain {
    static constexpr int M = M_, N = N_, THREAD_M = THREAD_M_, THREAD_N = THREAD_N_;
    static constexpr int THREADS = M / THREAD_M * (N / THREAD_N);
};
template <int M_, int N_, int WARP_M_, int WARP_N_>
struct Tensor {
    static constexpr int M = M_, N = N_, WARP_M = WARP_M_, WARP_N = WARP_N_;
    static constexpr int THREADS = 32 * (M / WARP_M) * (N / WARP_N);
};

// Blocks on a multiprocessor that launch bounds ask for: two, but for tiles that need more registers than half.
template <class Shape>
inline constexpr int blocks_per_sm = Shape::M * Shape::N > 64 * 64 ? 1 : 2;

// N neighbouring elements, moved by as few instructions as their size allows.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T element[N];
};

// ------------------------------------------------------------------------------------------------------------ places

// A row's, or a reduction entry's, share of an offset and of three coordinates.
template <class I>
struct alignas(16) Place {
    I offset, d, h, w;
};

// A coordinate so low that no other makes up for it, and two of them still do not overflow. It marks what is not there.
template <class I>
constexpr I OUTSIDE = -(I(1) << (8 * sizeof(I) - 2));

template <class I>
__device__ __forceinline__ Place<I> no_place() {
    return {0, OUTSIDE<I>, OUTSIDE<I>, OUTSIDE<I>};
}

template <class I>
__device__ __forceinline__ bool is_place(const Place<I>& place) {
    return place.w > OUTSIDE<I> / 2;
}

__device__ __forceinline__ bool within(int i, int size) {
    return static_cast<unsigned>(i) < static_cast<unsigned>(size);
}
__device__ __forceinline__ bool within(long long i, long long size) {
    return static_cast<unsigned long long>(i) < static_cast<unsigned long long>(size);
}

// ---------------------------------------------------------------------------------------------------- global operands

template <class T, int V>
__device__ __forceinline__ Pack<T, V> zero_pack() {
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; i++) pack.element[i] = T{};
    return pack;
}

// V neighbouring elements. Views may start anywhere, so whether their address suits a wide load is seen at run time.
template <int V, class T>
__device__ __forceinline__ Pack<T, V> load_pack(const T* address, bool aligned) {
    if constexpr (V > 1) {
        if (!aligned) {
            Pack<T, V> pack;
#pragma unroll
            for (int i = 0; i < V; i++) pack.element[i] = address[i];
            return pack;
        }
    }
    return *reinterpret_cast<const Pack<T, V>*>(address);
}

template <class T>
__device__ __forceinline__ bool aligned_to_vectors(const T* address) {
    return reinterpret_cast<unsigned long long>(address) % 16 == 0;
}

// The gathered operand with zeros around it: DIMS axes, of which two are the least.
template <class T, class I, int DIMS>
struct ZeroPadded {
    const T* source;
    bool aligned;
    I d, h, w;  // sizes

    template <int V>
    __device__ __forceinline__ Pack<T, V> load(const Place<I>& row, const Place<I>& reduction) const {
        bool inside = within(row.h + reduction.h, h) && within(row.w + reduction.w, w);
        if constexpr (DIMS == 3) inside = inside && within(row.d + reduction.d, d);
        return inside ? load_pack<V>(source + (row.offset + reduction.offset), aligned) : zero_pack<T, V>();
    }
};

// x as the gathered operand for any padding mode: the positions that padded coordinates show are no sums, so offsets of
// places hold image and channel alone. (Of 64-bit kernels there are few: they take zeros this way too.)
template <class T, class I>
struct Remapped {
    const T* source;
    const ConvParams& p;

    template <int V>
    __device__ __forceinline__ Pack<T, V> load(const Place<I>& row, const Place<I>& reduction) const {
        static_assert(V == 1, "neighbours in memory need not be neighbours here");
        if (!is_place(row) || !is_place(reduction)) return zero_pack<T, V>();
        const I d = source_index<I>(row.d + reduction.d, p.size[0], p.padding_mode);
        const I h = source_index<I>(row.h + reduction.h, p.size[1], p.padding_mode);
        const I w = source_index<I>(row.w + reduction.w, p.size[2], p.padding_mode);
        if (d < 0 || h < 0 || w < 0) return zero_pack<T, V>();
        return load_pack<V>(source + (row.offset + reduction.offset + spatial_offset(d, h, w, p.x_stride)), false);
    }
};

// The plain operand, of `columns` columns.
template <class T, class I>
struct Linear {
    const T* source;
    bool aligned;
    I column_stride;
    I columns;

    template <int V>
    __device__ __forceinline__ Pack<T, V> load(I offset, I column, bool inside) const {
        const T* address = source + (offset + column * column_stride);
        return inside && column < columns ? load_pack<V>(address, aligned) : zero_pack<T, V>();
    }
};

// Which elements of an operand's step, `COUNT_UNITS` wide and K deep, a thread brings: COUNT runs of V.
template <int COUNT_UNITS, int K, int THREADS, int ALONG, int V>
struct Share {
    static constexpr int COUNT = COUNT_UNITS * K / V / THREADS;
    static_assert(COUNT * V * THREADS == COUNT_UNITS * K, "a step must divide among the threads");

    static __device__ __forceinline__ int unit(int i) {
        const int run = i * THREADS + static_cast<int>(threadIdx.x);
        return ALONG == UNITS ? run % (COUNT_UNITS / V) * V : run / (K / V);
    }
    static __device__ __forceinline__ int depth(int i) {
        const int run = i * THREADS + static_cast<int>(threadIdx.x);
        return ALONG == UNITS ? run / (COUNT_UNITS / V) : run % (K / V) * V;
    }
};

// -------------------------------------------------------------------------------------------------------------- cores

// ALONG_A and ALONG_B say how operands come: the Tensor core keeps them in shared memory as they come.
template <class T, class Shape, int ALONG_A, int ALONG_B>
struct Core;

// Each thread sums THREAD_M x THREAD_N elements, in blocks of 4 x 4 that are 4 times the side of the thread grid apart,
// so that what neighbouring threads read from shared memory is neighbouring too.
template <class T, int M_, int N_, int THREAD_M, int THREAD_N, int ALONG_A, int ALONG_B>
struct Core<T, Plain<M_, N_, THREAD_M, THREAD_N>, ALONG_A, ALONG_B> {
    using Element = T;
    using Sum = compute_t<T>;
    static constexpr int M = M_, N = N_, K = sizeof(Sum) == 8 ? 8 : 16;
    static constexpr int THREADS = Plain<M, N, THREAD_M, THREAD_N>::THREADS;
    static constexpr int ACROSS = N / THREAD_N;  // threads side by side
    static constexpr int SLAB = M / (THREAD_M / 4);
    static constexpr int SPARE = 16 / sizeof(Sum);  // keeps rows of shared memory off the same banks, and aligned

    struct alignas(16) Buffer {
        Sum a[K][M + SPARE];
        Sum b[K][N + SPARE];

        template <int V>
        __device__ __forceinline__ void put_a(int row, int k, const Pack<T, V>& pack) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                a[ALONG_A == UNITS ? k : k + i][ALONG_A == UNITS ? row + i : row] = to_compute(pack.element[i]);
            }
        }
        template <int V>
        __device__ __forceinline__ void put_b(int column, int k, const Pack<T, V>& pack) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                b[ALONG_B == UNITS ? k : k + i][ALONG_B == UNITS ? column + i : column] = to_compute(pack.element[i]);
            }
        }
        __device__ __forceinline__ Sum plain(int column, int k) const { return b[k][column]; }
    };

    Sum sum[THREAD_M][THREAD_N];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < THREAD_M * THREAD_N; i++) sum[i / THREAD_N][i % THREAD_N] = 0;
    }

    __device__ __forceinline__ void multiply(const Buffer& buffer) {
        const int row = static_cast<int>(threadIdx.x) / ACROSS * 4, column = static_cast<int>(threadIdx.x) % ACROSS * 4;
#pragma unroll
        for (int k = 0; k < K; k++) {
            Pack<Sum, 4> a[THREAD_M / 4], b[THREAD_N / 4];
#pragma unroll
            for (int i = 0; i < THREAD_M / 4; i++) {
                a[i] = *reinterpret_cast<const Pack<Sum, 4>*>(&buffer.a[k][i * SLAB + row]);
            }
#pragma unroll
            for (int j = 0; j < THREAD_N / 4; j++) {
                b[j] = *reinterpret_cast<const Pack<Sum, 4>*>(&buffer.b[k][j * 4 * ACROSS + column]);
            }
#pragma unroll
            for (int i = 0; i < THREAD_M; i++) {
#pragma unroll
                for (int j = 0; j < THREAD_N; j++) {
                    sum[i][j] = multiply_add(a[i / 4].element[i % 4], b[j / 4].element[j % 4], sum[i][j]);
                }
            }
        }
    }

    // Put this thread's sums of rows [slab * SLAB, slab * SLAB + SLAB) of the tile where stores find them.
    template <int SLAB_NUMBER>
    __device__ __forceinline__ void stage(Sum (&staged)[SLAB][N + 1]) const {
        const int row = static_cast<int>(threadIdx.x) / ACROSS * 4, column = static_cast<int>(threadIdx.x) % ACROSS * 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < THREAD_N; j++) {
                staged[row + i][j / 4 * 4 * ACROSS + column + j % 4] = sum[SLAB_NUMBER * 4 + i][j];
            }
        }
    }
};

// Each warp sums WARP_M x WARP_N elements in tiles of 16 x 8, the mma's. Shared memory keeps 16-bit elements the way
// they come, along the reduction or across it; what comes across is transposed on its way to registers.
template <class T, int M_, int N_, int WARP_M, int WARP_N, int ALONG_A, int ALONG_B>
struct Core<T, Tensor<M_, N_, WARP_M, WARP_N>, ALONG_A, ALONG_B> {
    using Element = T;
    using Sum = float;
    static constexpr int M = M_, N = N_, K = 32;
    static constexpr int THREADS = Tensor<M, N, WARP_M, WARP_N>::THREADS;
    static constexpr int ACROSS = N / WARP_N;  // warps side by side
    static constexpr int SLAB = M > 64 ? 64 : M;
    static_assert(SLAB % WARP_M == 0, "a slab must have whole warps");

    // SIDE x K elements; rows are 16 bytes longer than needed, which keeps eight of them off the same banks.
    template <int SIDE, int ALONG>
    struct alignas(16) Operand {
        T element[ALONG == UNITS ? K : SIDE][(ALONG == UNITS ? SIDE : K) + 8];

        __device__ __forceinline__ T* at(int unit, int k) {
            return ALONG == UNITS ? &element[k][unit] : &element[unit][k];
        }
        __device__ __forceinline__ const T* at(int unit, int k) const {
            return ALONG == UNITS ? &element[k][unit] : &element[unit][k];
        }
        template <int V>
        __device__ __forceinline__ void put(int unit, int k, const Pack<T, V>& pack) {
            *reinterpret_cast<Pack<T, V>*>(at(unit, k)) = pack;
        }
        // Sixteen units by sixteen of the reduction, as four tiles of 8 x 8: UNITS_FIRST numbers them along the units.
        template <bool UNITS_FIRST>
        __device__ __forceinline__ void fragment(unsigned (&tile)[4], int unit, int k) const {
            const int lane = static_cast<int>(threadIdx.x) % 32, number = lane / 8, line = lane % 8;
            const int unit_tile = UNITS_FIRST ? number % 2 : number / 2, k_tile = UNITS_FIRST ? number / 2 : number % 2;
            unit += unit_tile * 8 + (ALONG == UNITS ? 0 : line);
            k += k_tile * 8 + (ALONG == UNITS ? line : 0);
            load_matrices<ALONG == UNITS>(tile, at(unit, k));
        }
    };

    struct Buffer {
        Operand<M, ALONG_A> a;
        Operand<N, ALONG_B> b;

        template <int V>
        __device__ __forceinline__ void put_a(int row, int k, const Pack<T, V>& pack) {
            a.put(row, k, pack);
        }
        template <int V>
        __device__ __forceinline__ void put_b(int column, int k, const Pack<T, V>& pack) {
            b.put(column, k, pack);
        }
        __device__ __forceinline__ Sum plain(int column, int k) const { return to_compute(*b.at(column, k)); }
    };

    float sum[WARP_M / 16][WARP_N / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < WARP_M / 16 * (WARP_N / 8); i++) {
#pragma unroll
            for (int e = 0; e < 4; e++) sum[i / (WARP_N / 8)][i % (WARP_N / 8)][e] = 0;
        }
    }

    __device__ __forceinline__ void multiply(const Buffer& buffer) {
        const int warp = static_cast<int>(threadIdx.x) / 32;
        const int row = warp / ACROSS * WARP_M, column = warp % ACROSS * WARP_N;
#pragma unroll
        for (int k = 0; k < K; k += 16) {
            unsigned a[WARP_M / 16][4], b[WARP_N / 16][4];
#pragma unroll
            for (int i = 0; i < WARP_M / 16; i++) buffer.a.template fragment<true>(a[i], row + 16 * i, k);
#pragma unroll
            for (int j = 0; j < WARP_N / 16; j++) buffer.b.template fragment<false>(b[j], column + 16 * j, k);
#pragma unroll
            for (int i = 0; i < WARP_M / 16; i++) {
#pragma unroll
                for (int j = 0; j < WARP_N / 8; j++) {
                    const unsigned half[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    mma_m16n8k16(sum[i][j], a[i], half, T{});
                }
            }
        }
    }

    template <int SLAB_NUMBER>
    __device__ __forceinline__ void stage(Sum (&staged)[SLAB][N + 1]) const {
        const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
        const int row = warp / ACROSS * WARP_M - SLAB_NUMBER * SLAB + lane / 4;
        const int column = warp % ACROSS * WARP_N + lane % 4 * 2;
        if (row < 0 || row >= SLAB) return;
#pragma unroll
        for (int i = 0; i < WARP_M / 16; i++) {
#pragma unroll
            for (int j = 0; j < WARP_N / 8; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    staged[row + 16 * i + e / 2 * 8][column + 8 * j + e % 2] = sum[i][j][e];
                }
            }
        }
    }
};

// --------------------------------------------------------------------------------------------------------- the tile

// What a block has in shared memory. Sums are staged where the operands were.
template <class C, class I>
struct Shared {
    Place<I> row[C::M];        // gathered operand
    Place<I> reduction[TABLE]; // gathered operand
    I plain[TABLE];            // plain operand
    I result[C::M];            // offsets of rows in the result
    I residual[C::M];          // and in the residual
    union {
        typename C::Buffer buffer[2];
        typename C::Sum staged[C::SLAB][C::N + 1];
    };
};

// Add the products of the reduction from `first` to `last` to the sums of `core`.
//
// `fill(entry, place, plain)` writes what reduction entry `entry` adds to the offsets of both operands; it is asked for
// entries below `last` alone. The caller has written `shared.row` and may write it again after the return; the first
// barrier is in here. Every thread of the block must call this alike. With `sums`, thread i adds the elements of column
// i of the plain operand to `column_sum`.
template <int ALONG_A, int ALONG_B, int V, class C, class I, class Gathered, class PlainOperand, class Fill>
__device__ __forceinline__ void accumulate(C& core, Shared<C, I>& shared, const Gathered& gathered,
                                           const PlainOperand& plain,
                                           I first_column, I first, I last, const Fill& fill, bool sums,
                                           typename C::Sum& column_sum) {
    using T = typename C::Element;
    using ShareA = Share<C::M, C::K, C::THREADS, ALONG_A, V>;
    using ShareB = Share<C::N, C::K, C::THREADS, ALONG_B, V>;
    const int thread = static_cast<int>(threadIdx.x);

    const auto multiply = [&](int number) {
        core.multiply(shared.buffer[number]);
        if (sums && thread < C::N) {
            for (int k = 0; k < C::K; k++) column_sum += shared.buffer[number].plain(thread, k);
        }
    };

    int number = 0;
    for (I step = first; step < last; step += C::K) {
        const int slot = static_cast<int>((step - first) % TABLE);
        if (slot == 0) {
            for (int i = thread; i < TABLE; i += C::THREADS) {
                shared.reduction[i] = no_place<I>();
                if (step + i < last) fill(step + i, shared.reduction[i], shared.plain[i]);
            }
            __syncthreads();
        }
        Pack<T, V> a[ShareA::COUNT];
        Pack<T, V> b[ShareB::COUNT];
#pragma unroll
        for (int i = 0; i < ShareA::COUNT; i++) {
            a[i] = gathered.template load<V>(shared.row[ShareA::unit(i)], shared.reduction[slot + ShareA::depth(i)]);
        }
#pragma unroll
        for (int i = 0; i < ShareB::COUNT; i++) {
            const int k = ShareB::depth(i);
            const bool inside = step + k < last;
            const I offset = inside ? shared.plain[slot + k] : 0;
            b[i] = plain.template load<V>(offset, first_column + ShareB::unit(i), inside);
        }
        if (step > first) multiply(number ^ 1);
#pragma unroll
        for (int i = 0; i < ShareA::COUNT; i++) shared.buffer[number].put_a(ShareA::unit(i), ShareA::depth(i), a[i]);
#pragma unroll
        for (int i = 0; i < ShareB::COUNT; i++) shared.buffer[number].put_b(ShareB::unit(i), ShareB::depth(i), b[i]);
        __syncthreads();
        number ^= 1;
    }
    if (first < last) multiply(number ^ 1);
}

// Call `store(row, column, sum)` for each element of the tile's first `rows` rows and `columns` columns, neighbouring
// threads along rows (ALONG is UNITS) or along columns.
template <int ALONG, int SLAB_NUMBER = 0, class C, class I, class Store>
__device__ __forceinline__ void for_each_sum(const C& core, Shared<C, I>& shared, I rows, I columns,
                                             const Store& store) {
    __syncthreads();
    core.template stage<SLAB_NUMBER>(shared.staged);
    __syncthreads();
#pragma unroll 1
    for (int e = static_cast<int>(threadIdx.x); e < C::SLAB * C::N; e += C::THREADS) {
        const int row = ALONG == UNITS ? e % C::SLAB : e / C::N, column = ALONG == UNITS ? e / C::SLAB : e % C::N;
        if (SLAB_NUMBER * C::SLAB + row < rows && column < columns) {
            store(SLAB_NUMBER * C::SLAB + row, column, shared.staged[row][column]);
        }
    }
    if constexpr ((SLAB_NUMBER + 1) * C::SLAB < C::M) {
        for_each_sum<ALONG, SLAB_NUMBER + 1>(core, shared, rows, columns, store);
    }
}

// The tile of block `number` among tiles_m x tiles_n: 8 tiles of rows before the next column, so that neighbouring
// blocks share what they read in the L2 cache.
struct TileNumber {
    int m, n;
};
__device__ __forceinline__ TileNumber grouped_tile(int number, int tiles_m, int tiles_n) {
    const int per_band = 8 * tiles_n, band = number / per_band, rest = number % per_band;
    const int rows = smaller(tiles_m - band * 8, 8);
    return {band * 8 + rest % rows, rest / rows};
}
