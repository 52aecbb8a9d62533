// Runs kernels on the host: blocks one after another, the threads of a block as fibers that switch at barriers, or
// (GPU_REAL_THREADS, for ThreadSanitizer) as threads of the operating system.
//
// Included before the text of the kernels, which is compiled as it is. What a GPU would do silently is an error here:
// a thread that ends, or waits elsewhere, while others of its block wait at a barrier.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(GPU_REAL_THREADS)
#include <pthread.h>
#include <unistd.h>
#elif !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace gpu {

struct Uint3 {
    unsigned x, y, z;
};

#if defined(GPU_REAL_THREADS)
#define GPU_PER_THREAD thread_local
#else
#define GPU_PER_THREAD
#endif

constexpr int MOST_THREADS = 1024;
constexpr int LANES = 32;

GPU_PER_THREAD Uint3 thread_index{0, 0, 0};
Uint3 block_index{0, 0, 0}, block_size{1, 1, 1}, grid_size{1, 1, 1};
char message[256];

using Entry = void (*)(void** arguments);

// A small generator for the orders: the same seed gives the same order everywhere.
struct Random {
    uint64_t state;
    unsigned below(unsigned limit) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<unsigned>((state >> 33) % limit);
    }
};

enum Order { FORWARD, REVERSED, SHUFFLED };

inline void arrange(unsigned* order, unsigned count, int kind, uint64_t seed) {
    for (unsigned i = 0; i < count; ++i) order[i] = kind == REVERSED ? count - 1 - i : i;
    if (kind != SHUFFLED) return;
    Random random{seed * 2654435761u + count};
    for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
}

// Shared memory is static here. The loader tells where it lies, so that every block finds it full of NaN and not of what
// the last block left there.
struct Range {
    void* begin;
    size_t size;
} shared_ranges[4096];
int shared_count = 0;

inline void poison_shared() {
    for (int i = 0; i < shared_count; ++i) memset(shared_ranges[i].begin, 0xff, shared_ranges[i].size);
}

// What a thread waits for.
enum State { READY, AT_BARRIER, IN_WARP, DONE };

#if !defined(GPU_REAL_THREADS)

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 256 * 1024;
#else
constexpr size_t STACK = 64 * 1024;
#endif

struct Fiber {
    State state;
    int line;
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    void* fake_stack;
};

Fiber fibers[MOST_THREADS];
Fiber host;
char* stacks = nullptr;
unsigned current = 0;
Entry running = nullptr;
void** running_arguments = nullptr;

#if defined(__x86_64__)
extern "C" void gpu_switch(void** save, void* load);
// Keeps what the System V ABI wants kept; far cheaper than swapcontext, which asks the kernel for the signal mask.
asm(R"(
.text
.local gpu_switch
.type gpu_switch, @function
gpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#endif

inline void change(Fiber& from, Fiber& to, const void* stack, size_t size, bool last) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, stack, size);
#endif
#if defined(__x86_64__)
    gpu_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
    (void)stack, (void)size, (void)last;
}

const void* host_stack = nullptr;
size_t host_stack_size = 0;

__attribute__((noipa)) void pause(State state, int line) {
    Fiber& self = fibers[current];
    self.state = state;
    self.line = line;
    change(self, host, host_stack, host_stack_size, false);
}

extern "C" __attribute__((noipa)) void gpu_fiber_begin() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &host_stack, &host_stack_size);
#endif
    running(running_arguments);
    fibers[current].state = DONE;
    change(fibers[current], host, host_stack, host_stack_size, true);
    abort();
}

inline void prepare(unsigned index) {
    Fiber& fiber = fibers[index];
    char* stack = stacks + index * STACK;
    fiber.state = READY;
    fiber.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack, STACK);
#endif
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr;  // where gpu_fiber_begin would return to; with it the stack is aligned as after a call
    *--top = reinterpret_cast<void*>(&gpu_fiber_begin);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &gpu_fiber_begin, 0);
#endif
}

__attribute__((noipa)) void barrier(int line) { pause(AT_BARRIER, line); }
__attribute__((noipa)) void warp_barrier(int line) { pause(IN_WARP, line); }

// Returns whether every thread of the warp of `index` waits inside of the warp's operation, and lets them go if so.
inline bool release_warp(unsigned index, unsigned count) {
    const unsigned first = index / LANES * LANES;
    if (first + LANES > count) return false;
    for (unsigned i = first; i < first + LANES; ++i)
        if (fibers[i].state != IN_WARP || fibers[i].line != fibers[first].line) return false;
    for (unsigned i = first; i < first + LANES; ++i) fibers[i].state = READY;
    return true;
}

// Runs one block; returns whether it ended as it should.
inline bool run_block(unsigned count, int thread_order, uint64_t seed) {
    static unsigned order[MOST_THREADS];
    for (unsigned i = 0; i < count; ++i) prepare(i);
    for (uint64_t phase = 0;; ++phase) {
        arrange(order, count, thread_order, seed * 1000003 + phase);
        for (bool moved = true; moved;) {
            moved = false;
            for (unsigned i = 0; i < count; ++i) {
                current = order[i];
                Fiber& fiber = fibers[current];
                if (fiber.state != READY) continue;
                thread_index.x = current;
                change(host, fiber, stacks + current * STACK, STACK, false);
                moved = true;
            }
            for (unsigned i = 0; i < count; i += LANES) moved = release_warp(i, count) || moved;
        }
        unsigned done = 0, waiting = 0;
        int line = 0, other = 0;
        for (unsigned i = 0; i < count; ++i) {
            if (fibers[i].state == IN_WARP) {
                snprintf(message, sizeof message,
                         "block %u: thread %u waits in an operation of its warp (line %d) that not all lanes reach",
                         block_index.x, i, fibers[i].line);
                return false;
            }
            done += fibers[i].state == DONE;
            if (fibers[i].state != AT_BARRIER) continue;
            ++waiting;
            if (line == 0) line = fibers[i].line;
            if (fibers[i].line != line) other = fibers[i].line;
        }
        if (done == count) return true;
        if (done != 0) {
            snprintf(message, sizeof message, "block %u: %u threads ended while %u wait at the barrier in line %d",
                     block_index.x, done, waiting, line);
            return false;
        }
        if (other != 0) {
            snprintf(message, sizeof message, "block %u: threads wait at different barriers, in lines %d and %d",
                     block_index.x, line, other);
            return false;
        }
        for (unsigned i = 0; i < count; ++i) fibers[i].state = READY;
    }
}

inline void start() {
    if (stacks != nullptr) return;
    void* memory = mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    stacks = static_cast<char*>(memory);
}

#else  // GPU_REAL_THREADS

// pthreads alone: the headers of C++ would cost more to compile than most kernels.
pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t opened = PTHREAD_COND_INITIALIZER;

struct Meeting {
    unsigned arrived = 0, round = 0, ended = 0;
} block_meeting, warp_meetings[MOST_THREADS / LANES];

// A thread that cannot go on waits here for the end of the program, which `fail` brings about.
[[noreturn]] inline void fail() {
    fprintf(stderr, "%s\n", message);
    _exit(3);
}

inline void meet(Meeting& meeting, unsigned all) {
    pthread_mutex_lock(&gate);
    const unsigned mine = meeting.round;
    if (++meeting.arrived == all) {
        meeting.arrived = 0;
        ++meeting.round;
        pthread_cond_broadcast(&opened);
    }
    while (meeting.round == mine) {
        if (meeting.ended != 0) {
            snprintf(message, sizeof message, "block %u: %u threads ended while others wait", block_index.x,
                     meeting.ended);
            fail();
        }
        pthread_cond_wait(&opened, &gate);
    }
    pthread_mutex_unlock(&gate);
}

__attribute__((noipa)) void barrier(int) { meet(block_meeting, block_size.x); }
__attribute__((noipa)) void warp_barrier(int) { meet(warp_meetings[thread_index.x / LANES], LANES); }

Entry running = nullptr;
void** running_arguments = nullptr;

extern "C" inline void* gpu_thread_begin(void* index) {
    thread_index = {static_cast<unsigned>(reinterpret_cast<uintptr_t>(index)), 0, 0};
    running(running_arguments);
    pthread_mutex_lock(&gate);
    ++block_meeting.ended;
    ++warp_meetings[thread_index.x / LANES].ended;
    pthread_cond_broadcast(&opened);
    pthread_mutex_unlock(&gate);
    return nullptr;
}

inline bool run_block(unsigned count, int thread_order, uint64_t seed) {
    static unsigned order[MOST_THREADS];
    static pthread_t team[MOST_THREADS];
    arrange(order, count, thread_order, seed);
    block_meeting.ended = 0;
    for (Meeting& meeting : warp_meetings) meeting.ended = 0;
    for (unsigned i = 0; i < count; ++i) {
        void* index = reinterpret_cast<void*>(static_cast<uintptr_t>(order[i]));
        if (pthread_create(&team[i], nullptr, &gpu_thread_begin, index) != 0) abort();
    }
    for (unsigned i = 0; i < count; ++i) pthread_join(team[i], nullptr);
    return true;
}

inline void start() {}

#endif

// Runs a grid; returns nullptr, or what went wrong.
inline const char* run_grid(Entry entry, long long grid, int block, void** arguments, int block_order,
                            int thread_order, unsigned seed) {
    if (grid < 1 || block < 1 || block > MOST_THREADS) return "a grid or a block of that size cannot be launched";
    start();
    running = entry;
    running_arguments = arguments;
    grid_size.x = static_cast<unsigned>(grid);
    block_size.x = static_cast<unsigned>(block);
    unsigned* order = static_cast<unsigned*>(malloc(grid * sizeof(unsigned)));
    arrange(order, static_cast<unsigned>(grid), block_order, seed);
    const char* problem = nullptr;
    for (long long i = 0; i < grid && problem == nullptr; ++i) {
        block_index.x = order[i];
        poison_shared();
        if (!run_block(static_cast<unsigned>(block), thread_order, seed + static_cast<uint64_t>(i))) problem = message;
    }
    free(order);
    return problem;
}

template <class... A, size_t... I>
inline void call_with(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

// Calls a kernel with its arguments, each given by its address, as cuLaunchKernel takes them.
template <class... A>
inline void call(void (*kernel)(A...), void** arguments) {
    call_with(kernel, arguments, std::index_sequence_for<A...>{});
}

template <class To, class From>
inline To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

}  // namespace gpu

// ------------------------------------------------------------------------------------------------ CUDA's language

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __shared__ static
#define __syncthreads() ::gpu::barrier(__LINE__)
#define threadIdx ::gpu::thread_index
#define blockIdx ::gpu::block_index
#define blockDim ::gpu::block_size
#define gridDim ::gpu::grid_size

inline float __uint_as_float(unsigned bits) { return gpu::bits_of<float>(bits); }
inline unsigned __float_as_uint(float value) { return gpu::bits_of<unsigned>(value); }
inline float __int_as_float(int bits) { return gpu::bits_of<float>(bits); }
inline int __float_as_int(float value) { return gpu::bits_of<int>(value); }
inline double __longlong_as_double(long long bits) { return gpu::bits_of<double>(bits); }
inline long long __double_as_longlong(double value) { return gpu::bits_of<long long>(value); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>((int64_t{a} * b) >> 32); }
template <class T>
inline T __ldg(const T* address) {
    return *address;
}
