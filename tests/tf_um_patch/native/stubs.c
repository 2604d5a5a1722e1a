/* A library that holds stubs of CUDA's functions under CUDA's names, as TensorFlow's libtensorflow_framework does: each
 * finds its function by dlsym at its first call. With LANDMARK defined it is instead a library that comes after it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#ifdef LANDMARK

int landmark(void)
{
    return 2;
}

#else

int landmark(void)
{
    return 1;
}

int next_landmark(void)
{
    int (*next)(void);
    void *found = dlsym(RTLD_NEXT, "landmark");
    memcpy(&next, &found, sizeof found);
    return next();
}

#define STUB(library, name, parameters, arguments)                                                                     \
    int name parameters                                                                                                \
    {                                                                                                                  \
        static int(*real) parameters;                                                                                  \
        if (real == NULL) {                                                                                            \
            void *found = dlsym(dlopen(library, RTLD_LAZY), #name);                                                    \
            memcpy(&real, &found, sizeof found);                                                                       \
        }                                                                                                              \
        return real arguments;                                                                                         \
    }

#define DRIVER "libcuda.so.1"
#ifndef RUNTIME
#define RUNTIME "libcudart.so.12"
#endif
STUB(DRIVER, cuMemAlloc_v2, (unsigned long long *address, size_t bytes), (address, bytes))
STUB(DRIVER, cuMemFree_v2, (unsigned long long address), (address))
STUB(RUNTIME, cudaMalloc, (void **address, size_t bytes), (address, bytes))
STUB(RUNTIME, cudaMallocManaged, (void **address, size_t bytes, unsigned flags), (address, bytes, flags))
STUB(RUNTIME, cudaFree, (void *address), (address))
STUB(RUNTIME, cudaMemGetInfo, (size_t *free, size_t *total), (free, total))
STUB(RUNTIME, cudaGetDevice, (int *device), (device))
STUB(RUNTIME, cudaDeviceGetAttribute, (int *value, int attribute, int device), (value, attribute, device))

#endif
