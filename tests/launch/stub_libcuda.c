/* A libcuda.so.1 that runs nothing and remembers launches, for machines without a GPU.

   What a test reads: how often anything was called that loads or asks, and each launch with its function, grid, block,
   shared memory, stream, context and argument bytes. More than 48 KiB of shared memory are refused, as by a driver, if
   the function was not told to have as much. The sizes of arguments are those that the test declared for the function (stub_declare), since a driver knows them from
   the binary and this one does not parse it. A function is the address of an object made when its module is loaded. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;

typedef struct {
  char name[512];
  int count, sizes[512], allowed; /* allowed: bytes of shared memory that it was told to have */
} Function;

typedef struct {
  void *function, *stream, *context;
  unsigned grid[3], block[3], shared, attributes, cluster[3], scheduling;
  int bytes;
  unsigned char arguments[4096];
} Launch;

typedef struct { /* CUlaunchAttribute */
  int id, padding;
  unsigned value[16];
} Attribute;

typedef struct { /* CUlaunchConfig */
  unsigned grid[3], block[3], shared;
  void *stream;
  const Attribute *attributes;
  unsigned count;
} Config;

#define MOST 65536
static Launch *launches;
static int launched, recording = 1, failing, others, device_of_context[16];
static __thread void *current; /* a context is the address of an element of device_of_context */

/* What the tests call. */
void stub_reset(void) { launched = failing = others = 0; }
int stub_others(void) { return others; }
void stub_record(int on) { recording = on; }
void stub_fail(int code) { failing = code; }
int stub_launches(void) { return launched; }
const Launch *stub_launch(int i) { return &launches[i]; }
void *stub_context(void) { return current; }
void stub_set_device(int device) { device_of_context[device] = device; current = &device_of_context[device]; }
void stub_forget_context(void) { current = NULL; }
const char *stub_name(void *function) { return ((Function *)function)->name; }
void stub_declare(void *function, int count, const int *sizes) {
  ((Function *)function)->count = count;
  memcpy(((Function *)function)->sizes, sizes, count * sizeof(int));
}

static Result record(void *f, const unsigned *grid, const unsigned *block, unsigned shared, void *stream,
                     const Attribute *attributes, unsigned count, void **parameters) {
  if (failing) return failing;
  if (!current) return 201; /* CUDA_ERROR_INVALID_CONTEXT */
  if (shared > 49152 && (int)shared > ((Function *)f)->allowed) return 1; /* CUDA_ERROR_INVALID_VALUE */
  if (!recording) return 0;
  if (!launches) launches = calloc(MOST, sizeof(Launch));
  int place = __atomic_fetch_add(&launched, 1, __ATOMIC_SEQ_CST);
  if (place >= MOST) return 2;
  Launch *launch = &launches[place];
  Function *function = f;
  launch->function = f;
  launch->stream = stream;
  launch->context = current;
  memcpy(launch->grid, grid, sizeof(launch->grid));
  memcpy(launch->block, block, sizeof(launch->block));
  launch->shared = shared;
  launch->attributes = count;
  memset(launch->cluster, 0, sizeof(launch->cluster));
  launch->scheduling = 0;
  for (unsigned i = 0; i < count; i++) {
    if (attributes[i].id == 4) memcpy(launch->cluster, attributes[i].value, sizeof(launch->cluster));
    if (attributes[i].id == 5) launch->scheduling = attributes[i].value[0];
  }
  launch->bytes = 0;
  for (int i = 0; i < function->count; i++) {
    memcpy(launch->arguments + launch->bytes, parameters[i], function->sizes[i]);
    launch->bytes += function->sizes[i];
  }
  return 0;
}

/* The driver's interface, as far as Triton and gpuconv use it. */
Result cuLaunchKernelEx(const Config *c, void *f, void **parameters, void **extra) {
  return record(f, c->grid, c->block, c->shared, c->stream, c->attributes, c->count, parameters);
}
Result cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *stream, void **parameters, void **extra) {
  unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  return record(f, grid, block, shared, stream, NULL, 0, parameters);
}
Result cuInit(unsigned flags) { return 0; }
Result cuGetErrorString(int error, const char **text) { *text = "the stub fails"; return 0; }
Result cuGetErrorName(int error, const char **text) { *text = "STUB"; return 0; }
Result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Result cuDeviceGetCount(int *count) { *count = 2; return 0; }
Result cuDeviceGet(int *device, int ordinal) { others++; *device = ordinal; return 0; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) { others++;
  switch (attribute) {
  case 10: *value = 32; break;     /* warp size */
  case 16: *value = 132; break;    /* multiprocessors */
  case 75: *value = 9; break;      /* compute capability */
  case 76: *value = 0; break;
  case 81: *value = 233472; break; /* shared memory of a multiprocessor */
  case 97: *value = 232448; break; /* and of a block */
  default: *value = 65536;
  }
  return 0;
}
Result cuDevicePrimaryCtxRetain(void **context, int device) { others++;
  device_of_context[device] = device;
  *context = &device_of_context[device];
  return 0;
}
Result cuCtxGetCurrent(void **context) { *context = current; return 0; }
Result cuCtxSetCurrent(void *context) { current = context; return 0; }
Result cuCtxGetDevice(int *device) { *device = *(int *)current; return 0; }
Result cuCtxGetLimit(size_t *value, int limit) { *value = 0; return 0; }
Result cuCtxSetLimit(int limit, size_t value) { return 0; }
Result cuModuleLoadData(void **module, const void *image) { others++; *module = calloc(1, sizeof(Function)); return 0; }
Result cuModuleUnload(void *module) { others++; return 0; }
Result cuModuleGetFunction(void **function, void *module, const char *name) { others++;
  strncpy(((Function *)module)->name, name, sizeof(((Function *)module)->name) - 1);
  *function = module;
  return 0;
}
Result cuFuncGetAttribute(int *value, int attribute, void *function) { others++; *value = attribute ? 0 : 1024; return 0; }
Result cuFuncSetAttribute(void *function, int attribute, int value) { others++;
  if (attribute == 8) ((Function *)function)->allowed = value; /* most dynamic shared memory */
  if (attribute == 17) ((Function *)function)->allowed = 228 << 10; /* oversized: all that there is (Triton 3.9) */
  return 0;
}
Result cuFuncSetCacheConfig(void *function, int config) { others++; return 0; }
Result cuPointerGetAttribute(void *data, int attribute, uint64_t pointer) { *(uint64_t *)data = pointer; return 0; }
Result cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
Result cuOccupancyMaxActiveClusters(int *count, void *function, const void *config) { *count = 1; return 0; }

/* A map is its address, and a hash of everything else that it was made of. */
static uint64_t mix(uint64_t hash, const void *data, size_t size) {
  for (size_t i = 0; i < size; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 1099511628211u;
  return hash;
}
static Result make_map(void *map, int type, unsigned rank, void *address, const uint64_t *sizes,
                       const uint64_t *strides, const unsigned *steps, const int *rest, uint64_t hash) {
  if ((uintptr_t)map % 64 || (uintptr_t)address % 16 || rank < 2 || rank > 5) return 1;
  for (unsigned i = 0; i + 1 < rank; i++)
    if (strides[i] % 16) return 1;
  hash = mix(mix(mix(hash, &type, sizeof(type)), sizes, rank * sizeof(*sizes)), strides, (rank - 1) * sizeof(*strides));
  hash = mix(mix(hash, steps, rank * sizeof(*steps)), rest, 4 * sizeof(*rest));
  memset(map, 0, 128);
  memcpy(map, &address, sizeof(address));
  memcpy((char *)map + 8, &hash, sizeof(hash));
  return 0;
}
Result cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address, const uint64_t *sizes,
                              const uint64_t *strides, const unsigned *box, const unsigned *steps, int interleave,
                              int swizzle, int promotion, int fill) {
  int rest[] = {interleave, swizzle, promotion, fill};
  return make_map(map, type, rank, address, sizes, strides, steps, rest, mix(1, box, rank * sizeof(*box)));
}
Result cuTensorMapEncodeIm2col(void *map, int type, unsigned rank, void *address, const uint64_t *sizes,
                               const uint64_t *strides, const int *lower, const int *upper, unsigned channels,
                               unsigned pixels, const unsigned *steps, int interleave, int swizzle, int promotion,
                               int fill) {
  int rest[] = {interleave, swizzle, promotion, fill};
  unsigned box[] = {channels, pixels};
  size_t corner = (rank - 2) * sizeof(*lower);
  uint64_t hash = mix(mix(mix(2, box, sizeof(box)), lower, corner), upper, corner);
  return make_map(map, type, rank, address, sizes, strides, steps, rest, hash);
}
Result cuTensorMapReplaceAddress(void *map, void *address) {
  if ((uintptr_t)map % 64 || (uintptr_t)address % 16) return 1;
  memcpy(map, &address, sizeof(address));
  return 0;
}
