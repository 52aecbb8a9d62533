// The host's version of kernels/cu/ptx.cuh: the same functions, without PTX.

struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};

inline float f16_to_float(f16 value) { return static_cast<float>(gpu::bits_of<_Float16>(value.bits)); }
inline f16 float_to_f16(float value) { return f16{gpu::bits_of<unsigned short>(static_cast<_Float16>(value))}; }

template <class T>
inline constexpr bool HAS_MMA = true;

// What the lanes of each warp show each other, twice: the next operation fills one half while lanes still read the
// other, so that one barrier of the warp is enough for each.
struct Exchange {
    float a[16][16], b[16][8];
    const void* rows[gpu::LANES];
};

static Exchange exchanges[gpu::MOST_THREADS / gpu::LANES][2];
static unsigned exchange_turn[gpu::MOST_THREADS];

inline Exchange& next_exchange() {
    const unsigned thread = gpu::thread_index.x;
    return exchanges[thread / gpu::LANES][exchange_turn[thread]++ % 2];
}

template <class T>
inline float half_of(unsigned word, int half) {
    const unsigned short bits = static_cast<unsigned short>(word >> (16 * half));
    if constexpr (sizeof(T) == sizeof(f16) && __is_same(T, f16)) {
        return f16_to_float(f16{bits});
    } else {
        return gpu::bits_of<float>(static_cast<unsigned>(bits) << 16);
    }
}

template <class T>
inline void mma_m16n8k16(float (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2], T) {
    const int lane = gpu::thread_index.x % gpu::LANES, row = lane / 4, pair = 2 * (lane % 4);
    Exchange& shown = next_exchange();
    for (int half = 0; half < 2; ++half) {
        shown.a[row][pair + half] = half_of<T>(a[0], half);
        shown.a[row + 8][pair + half] = half_of<T>(a[1], half);
        shown.a[row][pair + 8 + half] = half_of<T>(a[2], half);
        shown.a[row + 8][pair + 8 + half] = half_of<T>(a[3], half);
        shown.b[pair + half][row] = half_of<T>(b[0], half);
        shown.b[pair + 8 + half][row] = half_of<T>(b[1], half);
    }
    gpu::warp_barrier(-1);
    for (int i = 0; i < 4; ++i) {
        const int m = row + 8 * (i / 2), n = pair + i % 2;
        for (int k = 0; k < 16; ++k) acc[i] = fmaf(shown.a[m][k], shown.b[k][n], acc[i]);
    }
}

template <bool TRANSPOSED>
inline void load_matrices(unsigned (&tile)[4], const void* row) {
    const int lane = gpu::thread_index.x % gpu::LANES;
    Exchange& shown = next_exchange();
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
        fprintf(stderr, "load_matrices: thread %u gives an address that is no multiple of 16\n", gpu::thread_index.x);
        abort();
    }
    shown.rows[lane] = row;
    gpu::warp_barrier(-2);
    for (int i = 0; i < 4; ++i) {
        unsigned word = 0;
        for (int half = 0; half < 2; ++half) {
            const int down = TRANSPOSED ? 2 * (lane % 4) + half : lane / 4;
            const int across = TRANSPOSED ? lane / 4 : 2 * (lane % 4) + half;
            unsigned short bits;
            memcpy(&bits, static_cast<const char*>(shown.rows[8 * i + down]) + 2 * across, sizeof bits);
            word |= static_cast<unsigned>(bits) << (16 * half);
        }
        tile[i] = word;
    }
    // No lane may go on to write what another still reads: hardware reads everything at once.
    gpu::warp_barrier(-3);
}
