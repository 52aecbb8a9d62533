// Included after the kernels: what Python loads, and a program that runs one launch from a file, for sanitizers.

extern "C" const char* gpu_launch(int kernel, long long grid, int block, void** arguments, int block_order,
                                  int thread_order, unsigned seed) {
    return gpu::run_grid(gpu_entries[kernel], grid, block, arguments, block_order, thread_order, seed);
}

extern "C" void gpu_shared_memory(void* begin, size_t size) {
    if (gpu::shared_count < 4096) gpu::shared_ranges[gpu::shared_count++] = {begin, size};
}

#if defined(GPU_PROGRAM)

// File: int64 kernel, grid, block, block order, thread order, seed, number of arguments; then for each argument its
// kind (0: a value, 1: an array), its size in bytes, its address modulo 64, and its bytes. Arrays are written back.
static long long number_from(FILE* file) {
    long long value = 0;
    if (fread(&value, sizeof value, 1, file) != 1) abort();
    return value;
}

int main(int, char** names) {
    FILE* file = fopen(names[1], "rb");
    if (file == nullptr) abort();
    long long head[7];
    for (long long& value : head) value = number_from(file);
    const int count = static_cast<int>(head[6]);
    void** arguments = static_cast<void**>(malloc(count * sizeof(void*)));
    char** data = static_cast<char**>(calloc(count, sizeof(char*)));
    long long* sizes = static_cast<long long*>(calloc(count, sizeof(long long)));
    long long* kinds = static_cast<long long*>(calloc(count, sizeof(long long)));
    for (int i = 0; i < count; ++i) {
        kinds[i] = number_from(file);
        sizes[i] = number_from(file);
        const long long shift = number_from(file);
        void* base = nullptr;
        if (posix_memalign(&base, 64, shift + sizes[i] + (sizes[i] == 0)) != 0) abort();
        data[i] = static_cast<char*>(base) + shift;
        if (sizes[i] != 0 && fread(data[i], sizes[i], 1, file) != 1) abort();
#if defined(__SANITIZE_ADDRESS__)
        __asan_poison_memory_region(base, shift);
#endif
        arguments[i] = kinds[i] == 0 ? static_cast<void*>(data[i]) : static_cast<void*>(&data[i]);
    }
    fclose(file);
    const char* problem = gpu_launch(static_cast<int>(head[0]), head[1], static_cast<int>(head[2]), arguments,
                                     static_cast<int>(head[3]), static_cast<int>(head[4]),
                                     static_cast<unsigned>(head[5]));
    if (problem != nullptr) {
        fprintf(stderr, "%s\n", problem);
        return 3;
    }
    file = fopen(names[1], "wb");
    if (file == nullptr) abort();
    for (int i = 0; i < count; ++i)
        if (kinds[i] == 1 && sizes[i] != 0 && fwrite(data[i], sizes[i], 1, file) != 1) abort();
    return fclose(file);
}

#endif
