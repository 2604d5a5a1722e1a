// clang-format Language: C
/* The shim's one table: every CUDA function that it replaces, and those that it only calls. */
#ifndef TFUM_INTERPOSE_H
#define TFUM_INTERPOSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../cuda_min.h"

/* ROW(function, library, name for cuGetProcAddress, CUDA version since which that name means it, parameters, arguments)
 *
 * A hook of the same parameters, tfum_on_<function>, is in hooks.c. Functions that cuGetProcAddress does not know have
 * the name NULL. The functions without _v2 have 32-bit addresses; hardly a program calls them, but their
 * bytes count. No function takes a stream, so none has a form for per-thread default streams. What is not here is left
 * alone: stream-ordered pools (cuMemAllocAsync), pitched memory, arrays; and virtual memory management, of which
 * cuMemCreate is here to be counted, and said. */
#define TFUM_REPLACED(ROW)                                                                                             \
    ROW(cuMemAlloc_v2, DRIVER, "cuMemAlloc", 3020, (CUdeviceptr * address, size_t bytes), (address, bytes))            \
    ROW(cuMemAlloc, DRIVER, "cuMemAlloc", 2000, (CUdeviceptr_v1 * address, unsigned bytes), (address, bytes))          \
    ROW(cuMemAllocManaged, DRIVER, "cuMemAllocManaged", 6000, (CUdeviceptr * address, size_t bytes, unsigned flags),   \
        (address, bytes, flags))                                                                                       \
    ROW(cuMemFree_v2, DRIVER, "cuMemFree", 3020, (CUdeviceptr address), (address))                                     \
    ROW(cuMemFree, DRIVER, "cuMemFree", 2000, (CUdeviceptr_v1 address), (address))                                     \
    ROW(cuMemGetInfo_v2, DRIVER, "cuMemGetInfo", 3020, (size_t *free, size_t *total), (free, total))                   \
    ROW(cuMemGetInfo, DRIVER, "cuMemGetInfo", 2000, (unsigned *free, unsigned *total), (free, total))                  \
    ROW(cuGetProcAddress_v2, DRIVER, "cuGetProcAddress", 12000,                                                        \
        (const char *name, void **function, int version, uint64_t flags, void *status),                                \
        (name, function, version, flags, status))                                                                      \
    ROW(cuGetProcAddress, DRIVER, "cuGetProcAddress", 11030,                                                           \
        (const char *name, void **function, int version, uint64_t flags), (name, function, version, flags))            \
    ROW(cuMemCreate, DRIVER, "cuMemCreate", 10020,                                                                     \
        (uint64_t *handle, size_t bytes, const void *properties, uint64_t flags), (handle, bytes, properties, flags))  \
    ROW(cudaMalloc, RUNTIME, NULL, 0, (void **address, size_t bytes), (address, bytes))                                \
    ROW(cudaFree, RUNTIME, NULL, 0, (void *address), (address))                                                        \
    ROW(cudaMemGetInfo, RUNTIME, NULL, 0, (size_t *free, size_t *total), (free, total))

/* ROW(function, library, parameters) */
#define TFUM_CALLED(ROW)                                                                                               \
    ROW(cuCtxGetDevice, DRIVER, (CUdevice * device))                                                                   \
    ROW(cuDeviceGetAttribute, DRIVER, (int *value, int attribute, CUdevice device))                                    \
    ROW(cudaGetDevice, RUNTIME, (int *device))                                                                         \
    ROW(cudaDeviceGetAttribute, RUNTIME, (int *value, int attribute, int device))                                      \
    ROW(cudaMallocManaged, RUNTIME, (void **address, size_t bytes, unsigned flags))

#define TFUM_DECLARE_CALLED(function, library, parameters) typedef int tfum_type_##function parameters;
#define TFUM_DECLARE_REPLACED(function, library, base, since, parameters, arguments)                                   \
    typedef int tfum_type_##function parameters;                                                                       \
    tfum_type_##function tfum_on_##function;
TFUM_CALLED(TFUM_DECLARE_CALLED)
TFUM_REPLACED(TFUM_DECLARE_REPLACED)

enum tfum_function {
#define TFUM_NUMBER_REPLACED(function, library, base, since, parameters, arguments) TFUM_##function,
#define TFUM_NUMBER_CALLED(function, library, parameters) TFUM_##function,
    TFUM_REPLACED(TFUM_NUMBER_REPLACED) TFUM_REPLACED_COUNT,
    TFUM_LAST_REPLACED = TFUM_REPLACED_COUNT - 1,
    TFUM_CALLED(TFUM_NUMBER_CALLED) TFUM_FUNCTIONS
};

/* How a call reached the shim. */
enum tfum_route { TFUM_SYMBOL, TFUM_DLSYM, TFUM_PROC_ADDRESS, TFUM_ROUTES };

typedef void (*tfum_pointer)(void);

/* The function of CUDA's own library, or NULL where this machine's has none. */
tfum_pointer tfum_real(enum tfum_function function);
#define TFUM_REAL(function) ((tfum_type_##function *)tfum_real(TFUM_##function))

/* What cuGetProcAddress shall answer instead of `found`. */
void *tfum_proc_address(const char *name, int version, void *found);

/* Whether this thread is in a call that the shim made to the CUDA runtime: what that calls in turn was decided. */
extern _Thread_local int tfum_depth;

/* Calls of a function by a route so far; and none, in a child of fork. */
uint64_t tfum_calls(unsigned function, unsigned route);
void tfum_forget_calls(void);

/* In hooks.c: reads the options and registers what happens at fork and exit; once, whoever calls first. */
void tfum_start(void);

#endif
