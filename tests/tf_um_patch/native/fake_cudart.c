/* A stand-in for libcudart.so.12. As the real one it finds the driver by dlopen, one function of it by dlsym, and the
 * others by that function; it makes a context when it first needs one, and remembers the last error. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

static _Thread_local int last_error;

static void *driver(const char *name)
{
    int (*find)(const char *, void **, int, uint64_t, void *);
    void *found = dlsym(dlopen("libcuda.so.1", RTLD_LAZY), "cuGetProcAddress_v2");
    memcpy(&find, &found, sizeof find);
    if (find(name, &found, 12040, 0, NULL) != 0)
        abort();
    return found;
}

static void make_context(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_LAZY);
    int (*initialise)(unsigned);
    int (*retain)(void **, int);
    int (*set)(void *);
    void *context = NULL, *found;
    found = dlsym(library, "cuInit"), memcpy(&initialise, &found, sizeof found);
    found = dlsym(library, "cuDevicePrimaryCtxRetain"), memcpy(&retain, &found, sizeof found);
    found = dlsym(library, "cuCtxSetCurrent"), memcpy(&set, &found, sizeof found);
    if (initialise(0) || retain(&context, 0) || set(context))
        abort();
}

static int remember(int result)
{
    if (result)
        last_error = result;
    return result;
}

EXPORT int cudaGetLastError(void)
{
    int result = last_error;
    last_error = 0;
    return result;
}

EXPORT int cudaMalloc(void **address, size_t bytes)
{
    int (*allocate)(unsigned long long *, size_t);
    unsigned long long given = 0;
    if (address == NULL)
        return remember(1);
    *address = NULL;
    if (bytes == 0)
        return 0;
    make_context();
    void *found = driver("cuMemAlloc");
    memcpy(&allocate, &found, sizeof found);
    int result = allocate(&given, bytes);
    *address = (void *)(uintptr_t)given;
    return remember(result);
}

EXPORT int cudaMallocManaged(void **address, size_t bytes, unsigned flags)
{
    int (*allocate)(unsigned long long *, size_t, unsigned);
    unsigned long long given = 0;
    make_context();
    void *found = driver("cuMemAllocManaged");
    memcpy(&allocate, &found, sizeof found);
    int result = allocate(&given, bytes, flags);
    *address = (void *)(uintptr_t)given;
    return remember(result);
}

EXPORT int cudaFree(void *address)
{
    int (*release)(unsigned long long);
    make_context();
    void *found = driver("cuMemFree");
    memcpy(&release, &found, sizeof found);
    return remember(release((uintptr_t)address));
}

EXPORT int cudaMemGetInfo(size_t *free, size_t *total)
{
    int (*query)(size_t *, size_t *);
    make_context();
    void *found = driver("cuMemGetInfo");
    memcpy(&query, &found, sizeof found);
    return remember(query(free, total));
}

EXPORT int cudaGetDevice(int *device)
{
    *device = 0;
    return 0;
}

EXPORT int cudaDeviceGetAttribute(int *value, int attribute, int device)
{
    int (*query)(int *, int, int);
    make_context();
    void *found = driver("cuDeviceGetAttribute");
    memcpy(&query, &found, sizeof found);
    return remember(query(value, attribute, device));
}
