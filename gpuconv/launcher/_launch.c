/* Launches everything that a prepared call consists of: per call only pointers and the stream are new. And reads what a
   call is known again by from its tensors, which takes longer than a launch when Python does it.

   A plan is immutable once it is made, and what a call changes lives on its stack: threads need no lock. The CUDA
   driver is opened at run time, so that nothing but Python.h and a C compiler is needed to build this file. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_PARAMETERS 512 /* of 8 bytes: 4 KiB, what CUDA allows by default */
#define MOST_POINTERS 64    /* that a call brings */
#define MOST_MAPS 18        /* of one kernel: x, w, and results and residuals of 8 phases */
#define NAME "gpuconv.plan"

typedef struct {
  int slot;       /* place among the pointers of a call, or -1 for a scalar */
  int aligned;    /* the kernel was compiled for multiples of 16 bytes */
  int map;        /* which tensor map of its plan it is, or -1: the pointer is its address */
  int64_t offset; /* added to the pointer; for a scalar, where it begins among the scalars of its plan */
} Parameter;

typedef struct { /* CUtensorMap */
  _Alignas(64) unsigned char bytes[128];
} Map;

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

typedef struct {
  void *function;
  unsigned grid[3], block, shared, cluster;
  int count;
  Parameter *parameters;
} Kernel;

typedef struct {
  PyObject *owners; /* what must live as long: the compiled kernels, which unload their modules when they go */
  int device;
  void *context;
  int pointers, count;
  Kernel *kernels;
  Parameter *parameters;
  unsigned char *scalars;
  int maps;
  Map *map; /* with the address of the first call */
} Plan;

static int (*launch_kernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                            void **, void **);
static int (*current_context)(void **);
static int (*set_context)(void *);
static int (*context_device)(int *);
static int (*get_device)(int *, int);
static int (*retain_context)(void **, int);
static int (*error_string)(int, const char **);
static int (*launch_extended)(const Config *, void *, void **, void **); /* NULL where the driver is older than CUDA 12 */
static int (*replace_address)(Map *, void *);

static int open_driver(void) {
  if (error_string) return 0; /* which comes last */
  static const struct { const char *name; void *place; } wanted[] = {
      {"cuLaunchKernel", &launch_kernel},      {"cuCtxGetCurrent", &current_context},
      {"cuCtxSetCurrent", &set_context},       {"cuCtxGetDevice", &context_device},
      {"cuDeviceGet", &get_device},            {"cuDevicePrimaryCtxRetain", &retain_context},
      {"cuGetErrorString", &error_string},
  };
  void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
  if (!driver) {
    PyErr_SetString(PyExc_ImportError, "libcuda.so.1 cannot be opened");
    return -1;
  }
  for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
    void *symbol = dlsym(driver, wanted[i].name);
    if (!symbol) {
      PyErr_Format(PyExc_ImportError, "libcuda.so.1 has no %s", wanted[i].name);
      return -1;
    }
    memcpy(wanted[i].place, &symbol, sizeof(symbol));
  }
  void *symbol = dlsym(driver, "cuLaunchKernelEx");
  memcpy(&launch_extended, &symbol, sizeof(symbol));
  symbol = dlsym(driver, "cuTensorMapReplaceAddress");
  memcpy(&replace_address, &symbol, sizeof(symbol));
  return 0;
}

static PyObject *failed(int code) {
  const char *text = NULL;
  error_string(code, &text);
  return PyErr_Format(PyExc_RuntimeError, "CUDA error %d: %s", code, text ? text : "unknown");
}

static void free_plan(PyObject *capsule) {
  Plan *plan = PyCapsule_GetPointer(capsule, NAME);
  if (!plan) return;
  Py_XDECREF(plan->owners);
  PyMem_Free(plan->kernels);
  PyMem_Free(plan->parameters);
  PyMem_Free(plan->scalars);
  free(plan->map);
  PyMem_Free(plan);
}

/* Reads (slot, offset, aligned) of a pointer, (slot, offset, bytes) of a tensor map, or the bytes of a scalar, which it
   copies behind `used` others. */
static int read_parameter(Plan *plan, Parameter *parameter, PyObject *given, Py_ssize_t *used) {
  if (PyBytes_Check(given)) {
    Py_ssize_t size = PyBytes_GET_SIZE(given);
    if (size > 8) {
      PyErr_SetString(PyExc_ValueError, "a scalar has at most 8 bytes");
      return -1;
    }
    parameter->slot = -1;
    parameter->offset = *used;
    memcpy(plan->scalars + *used, PyBytes_AS_STRING(given), size);
    *used += 8; /* each begins at a multiple of 8, which aligns all of them */
    return 0;
  }
  long long offset;
  PyObject *last;
  if (!PyArg_ParseTuple(given, "iLO", &parameter->slot, &offset, &last)) return -1;
  parameter->offset = offset;
  parameter->map = -1;
  if (PyBytes_Check(last)) {
    if (PyBytes_GET_SIZE(last) != sizeof(Map) || !replace_address) {
      PyErr_SetString(PyExc_ValueError, "a tensor map has 128 bytes, and needs a driver of CUDA 12 or later");
      return -1;
    }
    parameter->map = plan->maps;
    parameter->aligned = 1;
    memcpy(plan->map[plan->maps++].bytes, PyBytes_AS_STRING(last), sizeof(Map));
  } else {
    parameter->aligned = PyObject_IsTrue(last);
    if (parameter->aligned < 0) return -1;
  }
  if (parameter->slot < 0 || parameter->slot >= plan->pointers) {
    PyErr_SetString(PyExc_ValueError, "no such pointer");
    return -1;
  }
  return 0;
}

static int read_kernel(Plan *plan, Kernel *kernel, PyObject *given, Parameter **next, Py_ssize_t *used) {
  unsigned long long function;
  PyObject *parameters;
  if (!PyArg_ParseTuple(given, "K(III)IIIO!", &function, &kernel->grid[0], &kernel->grid[1], &kernel->grid[2],
                        &kernel->block, &kernel->shared, &kernel->cluster, &PyTuple_Type, &parameters))
    return -1;
  if (kernel->cluster > 1 && !launch_extended) {
    PyErr_SetString(PyExc_ValueError, "clusters need a driver of CUDA 12 or later");
    return -1;
  }
  kernel->function = (void *)(uintptr_t)function;
  kernel->count = (int)PyTuple_GET_SIZE(parameters);
  kernel->parameters = *next;
  *next += kernel->count;
  int before = plan->maps;
  for (int i = 0; i < kernel->count; i++)
    if (read_parameter(plan, &kernel->parameters[i], PyTuple_GET_ITEM(parameters, i), used)) return -1;
  if (plan->maps - before > MOST_MAPS) {
    PyErr_Format(PyExc_ValueError, "a kernel has at most %d tensor maps", MOST_MAPS);
    return -1;
  }
  return 0;
}

/* make(owners, device, pointers, kernels): each kernel is (function, grid, block, shared, blocks of a cluster along the
   first axis, parameters). */
static PyObject *make(PyObject *self, PyObject *args) {
  PyObject *owners, *kernels;
  int device, pointers;
  if (open_driver()) return NULL;
  if (!PyArg_ParseTuple(args, "OiiO!", &owners, &device, &pointers, &PyTuple_Type, &kernels)) return NULL;
  Py_ssize_t count = PyTuple_GET_SIZE(kernels), parameters = 0, maps = 0;
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *kernel = PyTuple_GET_ITEM(kernels, i);
    PyObject *last = PyTuple_Check(kernel) && PyTuple_GET_SIZE(kernel) == 6 ? PyTuple_GET_ITEM(kernel, 5) : NULL;
    if (!last || !PyTuple_Check(last) || PyTuple_GET_SIZE(last) > MOST_PARAMETERS)
      return PyErr_Format(PyExc_ValueError, "a kernel has 6 facts and at most %d parameters", MOST_PARAMETERS);
    parameters += PyTuple_GET_SIZE(last);
    for (Py_ssize_t p = 0; p < PyTuple_GET_SIZE(last); p++) {
      PyObject *given = PyTuple_GET_ITEM(last, p);
      maps += PyTuple_Check(given) && PyTuple_GET_SIZE(given) == 3 && PyBytes_Check(PyTuple_GET_ITEM(given, 2));
    }
  }
  if (pointers < 0 || pointers > MOST_POINTERS)
    return PyErr_Format(PyExc_ValueError, "at most %d pointers", MOST_POINTERS);
  Plan *plan = PyMem_Calloc(1, sizeof(Plan));
  if (!plan) return PyErr_NoMemory();
  PyObject *capsule = PyCapsule_New(plan, NAME, free_plan);
  if (!capsule) {
    PyMem_Free(plan);
    return NULL;
  }
  plan->owners = Py_NewRef(owners);
  plan->pointers = pointers;
  plan->count = (int)count;
  plan->kernels = PyMem_Calloc(count + 1, sizeof(Kernel));
  plan->parameters = PyMem_Calloc(parameters + 1, sizeof(Parameter));
  plan->scalars = PyMem_Calloc(parameters + 1, 8);
  plan->map = aligned_alloc(sizeof(Map), (maps + 1) * sizeof(Map)); /* 128 is a multiple of 64 */
  if (!plan->kernels || !plan->parameters || !plan->scalars || !plan->map) {
    Py_DECREF(capsule);
    return PyErr_NoMemory();
  }
  Parameter *next = plan->parameters;
  Py_ssize_t used = 0;
  for (Py_ssize_t i = 0; i < count; i++)
    if (read_kernel(plan, &plan->kernels[i], PyTuple_GET_ITEM(kernels, i), &next, &used)) {
      Py_DECREF(capsule);
      return NULL;
    }
  int code = get_device(&plan->device, device);
  if (!code) code = retain_context(&plan->context, plan->device);
  if (code) {
    Py_DECREF(capsule);
    return failed(code);
  }
  return capsule;
}

/* As Triton does: a program of the grid is a cluster along the first axis, and clusters are spread over the GPU. */
static int launch_cluster(const Kernel *kernel, void *stream, void **arguments) {
  Attribute attributes[] = {{.id = 4, .value = {kernel->cluster, 1, 1}}, {.id = 5, .value = {1}}};
  Config config = {.grid = {kernel->grid[0] * kernel->cluster, kernel->grid[1], kernel->grid[2]},
                   .block = {kernel->block, 1, 1},
                   .shared = kernel->shared,
                   .stream = stream,
                   .attributes = attributes,
                   .count = 2};
  return launch_extended(&config, kernel->function, arguments, NULL);
}

static int launch_all(const Plan *plan, void *stream, uint64_t *pointers) {
  void *arguments[MOST_PARAMETERS];
  uint64_t values[MOST_PARAMETERS];
  Map maps[MOST_MAPS]; /* of this call, as others run beside it */
  for (int k = 0; k < plan->count; k++) {
    const Kernel *kernel = &plan->kernels[k];
    int used = 0;
    for (int i = 0; i < kernel->count; i++) {
      const Parameter *parameter = &kernel->parameters[i];
      if (parameter->slot < 0) {
        arguments[i] = plan->scalars + parameter->offset;
      } else if (parameter->map >= 0) {
        Map *map = &maps[used++];
        memcpy(map, &plan->map[parameter->map], sizeof(Map));
        int code = replace_address(map, (void *)(uintptr_t)(pointers[parameter->slot] + parameter->offset));
        if (code) return code;
        arguments[i] = map;
      } else {
        values[i] = pointers[parameter->slot] + parameter->offset;
        arguments[i] = &values[i];
      }
    }
    int code = kernel->cluster > 1
                   ? launch_cluster(kernel, stream, arguments)
                   : launch_kernel(kernel->function, kernel->grid[0], kernel->grid[1], kernel->grid[2], kernel->block, 1,
                                   1, kernel->shared, stream, arguments, NULL);
    if (code) return code;
  }
  return 0;
}

/* Launches with the context of the plan's device current, as a device guard would. A context of the same device that
   is not the primary one stays: it belongs to the stream, as green contexts do. */
static int launch_on_device(const Plan *plan, void *stream, uint64_t *pointers) {
  void *before = NULL;
  int code = current_context(&before), device = -1;
  if (code) return code;
  int stays = before == plan->context || (before && !context_device(&device) && device == plan->device);
  if (stays) return launch_all(plan, stream, pointers);
  code = set_context(plan->context);
  if (code) return code;
  code = launch_all(plan, stream, pointers);
  int restored = before ? set_context(before) : 0; /* a thread that had no context keeps this one */
  return code ? code : restored;
}

static int is_aligned(const Plan *plan, const uint64_t *pointers) {
  for (int k = 0; k < plan->count; k++) {
    const Kernel *kernel = &plan->kernels[k];
    for (int i = 0; i < kernel->count; i++) {
      const Parameter *parameter = &kernel->parameters[i];
      if (parameter->slot >= 0 && parameter->aligned && (pointers[parameter->slot] + parameter->offset) % 16) return 0;
    }
  }
  return 1;
}

/* launch(plan, stream, *pointers): False where a pointer is not aligned as the kernels expect; nothing ran then. */
static PyObject *launch(PyObject *self, PyObject *const *args, Py_ssize_t given) {
  uint64_t pointers[MOST_POINTERS];
  Plan *plan = given ? PyCapsule_GetPointer(args[0], NAME) : NULL;
  if (!plan) return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "launch(plan, stream, *pointers)");
  if (given - 2 != plan->pointers)
    return PyErr_Format(PyExc_TypeError, "the plan takes a stream and %d pointers, but got %zd arguments",
                        plan->pointers, given - 1);
  void *stream = (void *)(uintptr_t)PyLong_AsUnsignedLongLong(args[1]);
  for (int i = 0; i < plan->pointers; i++) pointers[i] = PyLong_AsUnsignedLongLong(args[2 + i]);
  if (PyErr_Occurred()) return NULL;
  if (!is_aligned(plan, pointers)) Py_RETURN_FALSE;
  int code;
  /* The driver waits when its queue is full, for a stream that may itself wait for a thread that needs the GIL. */
  Py_BEGIN_ALLOW_THREADS
  code = launch_on_device(plan, stream, pointers);
  Py_END_ALLOW_THREADS
  if (code) return failed(code);
  Py_RETURN_TRUE;
}

/* What DLPack's exchange API, version 1, hands out (dmlc/dlpack, include/dlpack/dlpack.h); torch has it since 2.10. */
typedef struct {
  void *data;
  int32_t device[2]; /* kind and index */
  int32_t ndim;
  uint8_t dtype[4]; /* kind, bits, and the low and high byte of the lanes */
  int64_t *shape, *strides;
  uint64_t offset;
} Tensor;

typedef struct Exchange {
  uint32_t major, minor;
  struct Exchange *older;
  void *allocate, *from_object, *to_object;
  int (*tensor_of)(void *object, Tensor *tensor); /* borrows; -1 with a Python error */
  void *current_stream;
} Exchange;

static int (*tensor_of)(void *object, Tensor *tensor);
static PyObject *name_is_neg, *name_grad;

/* use(capsule): signs what the framework of a `__dlpack_c_exchange_api__` made. True where it has what that needs. */
static PyObject *use(PyObject *self, PyObject *capsule) {
  Exchange *exchange = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  if (!exchange) return NULL;
  while (exchange && exchange->major != 1) exchange = exchange->older;
  tensor_of = exchange ? exchange->tensor_of : NULL;
  return PyBool_FromLong(tensor_of != NULL);
}

/* 1 where `answer`, which it consumes, is True, 0 where not, -1 where it is no answer. */
static int is_true(PyObject *answer) {
  int truth = answer ? answer == Py_True : -1;
  Py_XDECREF(answer);
  return truth;
}

/* Appends what a plan depends on of a tensor to `text`, which has room for `room` bytes; its address goes to `address`.
   Returns the bytes, or -1 without an error where the tensor has no signature: see sign. */
static Py_ssize_t sign_tensor(PyObject *array, int grad, char *text, size_t room, uint64_t *address) {
  Tensor tensor;
  int odd = is_true(PyObject_CallMethodNoArgs(array, name_is_neg));
  if (!odd && grad) odd = is_true(PyObject_GetAttr(array, name_grad));
  if (odd || tensor_of(array, &tensor)) {
    PyErr_Clear();
    return -1;
  }
  size_t sizes = (size_t)tensor.ndim * sizeof(int64_t), head = 2 + sizeof(tensor.dtype) + sizeof(tensor.device);
  if (tensor.ndim > 64 || (tensor.ndim && !tensor.strides) || head + 2 * sizes > room) return -1;
  int empty = 0;
  for (int i = 0; i < tensor.ndim; i++) empty |= tensor.shape[i] == 0;
  if (!tensor.data && !empty) return -1; /* zeros of autograd that have no memory */
  *address = (uint64_t)(uintptr_t)tensor.data + tensor.offset;
  *text++ = (char)(1 + tensor.ndim); /* 0 is no tensor */
  *text++ = *address % 16 == 0;
  memcpy(text, tensor.dtype, sizeof(tensor.dtype));
  memcpy(text + sizeof(tensor.dtype), tensor.device, sizeof(tensor.device));
  text += sizeof(tensor.dtype) + sizeof(tensor.device);
  if (sizes) {
    memcpy(text, tensor.shape, sizes);
    memcpy(text + sizes, tensor.strides, sizes);
  }
  return (Py_ssize_t)(head + 2 * sizes);
}

/* sign(arrays, grad, plain): bytes that say of tensors what gpuconv.dispatch.plan_cache.signatures says, and their addresses;
   None where that raises UnkeyedError, and for arrays whose type is not in the tuple `plain`. */
static PyObject *sign(PyObject *self, PyObject *const *args, Py_ssize_t given) {
  if (given != 3 || !PyTuple_Check(args[0]) || !PyTuple_Check(args[2]))
    return PyErr_Format(PyExc_TypeError, "sign(arrays, grad, plain)");
  PyObject *arrays = args[0], *plain = args[2];
  int grad = args[1] == Py_True;
  char text[4096];
  Py_ssize_t count = PyTuple_GET_SIZE(arrays), used = 0;
  if (!tensor_of) Py_RETURN_NONE;
  PyObject *addresses = PyTuple_New(count), *signature;
  if (!addresses) return NULL;
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *array = PyTuple_GET_ITEM(arrays, i);
    uint64_t address = 0;
    Py_ssize_t size = -1, room = (Py_ssize_t)sizeof(text) - used;
    if (array == Py_None && room > 0) {
      text[used] = 0;
      size = 1;
    } else {
      for (Py_ssize_t t = 0; size < 0 && t < PyTuple_GET_SIZE(plain); t++)
        if ((PyObject *)Py_TYPE(array) == PyTuple_GET_ITEM(plain, t)) {
          size = sign_tensor(array, grad, text + used, (size_t)room, &address);
          break;
        }
    }
    PyObject *number = size < 0 ? NULL : PyLong_FromUnsignedLongLong(address);
    if (!number) {
      Py_DECREF(addresses);
      if (PyErr_Occurred()) return NULL;
      Py_RETURN_NONE;
    }
    PyTuple_SET_ITEM(addresses, i, number);
    used += size;
  }
  signature = PyBytes_FromStringAndSize(text, used);
  PyObject *result = signature ? PyTuple_Pack(2, signature, addresses) : NULL;
  Py_XDECREF(signature);
  Py_DECREF(addresses);
  return result;
}

static PyMethodDef methods[] = {
    {"use", use, METH_O, "Sign the tensors of a framework."},
    {"sign", (PyCFunction)(void *)sign, METH_FASTCALL, "Read what tensors are known again by."},
    {"make", make, METH_VARARGS, "Make a plan."},
    {"launch", (PyCFunction)(void *)launch, METH_FASTCALL, "Launch a plan."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "gpuconv_launch", NULL, -1, methods};

PyMODINIT_FUNC PyInit_gpuconv_launch(void) {
  name_is_neg = PyUnicode_InternFromString("is_neg");
  name_grad = PyUnicode_InternFromString("requires_grad");
  return name_is_neg && name_grad ? PyModule_Create(&module) : NULL;
}
