/* Puts the shim between a program and CUDA, on each of the routes by which programs find CUDA's functions.
 *
 * By symbol: a preloaded library comes first in the search of the dynamic linker. TensorFlow is reached like this. Its
 * libtensorflow_framework exports a stub for every driver function, which finds the driver's own in libcuda.so.1 by
 * dlsym at its first call; but it calls those stubs through its procedure linkage table (JUMP_SLOT relocations of
 * cuMemAlloc_v2, cuMemFree_v2, cuMemGetInfo_v2 and cuMemAllocManaged in TensorFlow 2.21, GLOB_DAT in 1.15.5: readelf
 * -rW), where the shim's symbols of the same names win. The same library exports cudaMalloc.
 *
 * By dlsym: as TensorFlow's stubs, CUDA runtimes before 11.3, CuPy and Numba do.
 *
 * By cuGetProcAddress: as CUDA runtimes since 11.3 do, which find that one function by dlsym.
 *
 * For the same reason CUDA's own functions cannot be taken from RTLD_NEXT: after the shim come TensorFlow's stubs,
 * which would ask dlsym and be given the shim again. They are taken from the driver library, by its soname, and from
 * the runtime library that is loaded, whatever its version. */
#define _GNU_SOURCE
#include "interpose.h"

#include <dlfcn.h>
#include <link.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum library { DRIVER, RUNTIME };

_Thread_local int tfum_depth;

static atomic_ullong calls[TFUM_REPLACED_COUNT][TFUM_ROUTES];

static int missing(enum library library)
{
    return library == DRIVER ? CUDA_ERROR_SHARED_OBJECT_INIT_FAILED : 35 /* cudaErrorInsufficientDriver */;
}

/* One entry per route and function, which differ only in what they count. */
#define ENTER(function, route, library, arguments)                                                                     \
    tfum_start();                                                                                                      \
    if (TFUM_REAL(function) == NULL)                                                                                   \
        return missing(library);                                                                                       \
    if (tfum_depth > 0)                                                                                                \
        return TFUM_REAL(function) arguments;                                                                          \
    atomic_fetch_add_explicit(&calls[TFUM_##function][route], 1, memory_order_relaxed);                                \
    return tfum_on_##function arguments;

#define DEFINE_ENTRIES(function, library, base, since, parameters, arguments)                                          \
    tfum_type_##function function;                                                                                     \
    int function parameters                                                                                            \
    {                                                                                                                  \
        ENTER(function, TFUM_SYMBOL, library, arguments)                                                               \
    }                                                                                                                  \
    static int function##_by_dlsym parameters                                                                          \
    {                                                                                                                  \
        ENTER(function, TFUM_DLSYM, library, arguments)                                                                \
    }                                                                                                                  \
    static int function##_by_proc_address parameters                                                                   \
    {                                                                                                                  \
        ENTER(function, TFUM_PROC_ADDRESS, library, arguments)                                                         \
    }
TFUM_REPLACED(DEFINE_ENTRIES)

struct row {
    const char *name;
    enum library library;
    const char *base; /* its name for cuGetProcAddress, or NULL */
    int since;
    tfum_pointer replacement[TFUM_ROUTES];
};

#define ROW_REPLACED(function, library, base, since, parameters, arguments)                                            \
    [TFUM_##function] = {                                                                                              \
        #function,                                                                                                     \
        library,                                                                                                       \
        base,                                                                                                          \
        since,                                                                                                         \
        {(tfum_pointer)function, (tfum_pointer)function##_by_dlsym, (tfum_pointer)function##_by_proc_address}},
#define ROW_CALLED(function, library, parameters) [TFUM_##function] = {#function, library, NULL, 0, {NULL}},
static const struct row table[TFUM_FUNCTIONS] = {TFUM_REPLACED(ROW_REPLACED) TFUM_CALLED(ROW_CALLED)};

/* CUDA's own functions, found when they are first needed. */
static _Atomic(tfum_pointer) real[TFUM_FUNCTIONS];

/* ISO C has no cast between the two kinds of pointers, POSIX promises that they are alike. */
static tfum_pointer to_function(void *object)
{
    tfum_pointer function;
    memcpy(&function, &object, sizeof function);
    return function;
}

static void *to_object(tfum_pointer function)
{
    void *object;
    memcpy(&object, &function, sizeof object);
    return object;
}

typedef void *dlsym_type(void *, const char *);

/* glibc's own dlsym. dlvsym is not replaced, but wants a version: dlsym moved from libdl to libc in glibc 2.34, and
 * every architecture began with another one. */
static dlsym_type *real_dlsym(void)
{
    static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17", "GLIBC_2.0"};
    static _Atomic(dlsym_type *) known;
    dlsym_type *function = atomic_load(&known);
    for (size_t i = 0; function == NULL && i < sizeof versions / sizeof *versions; i++) {
        function = (dlsym_type *)to_function(dlvsym(RTLD_NEXT, "dlsym", versions[i]));
        atomic_store(&known, function);
    }
    return function;
}

static void *driver_library(void)
{
    static _Atomic(void *) known;
    void *library = atomic_load(&known);
    if (library == NULL) {
        library = dlopen("libcuda.so.1", RTLD_LAZY);
        atomic_store(&known, library);
    }
    return library;
}

static int note_runtime(struct dl_phdr_info *info, size_t size, void *path)
{
    (void)size;
    const char *name = strrchr(info->dlpi_name, '/');
    if (name == NULL || strncmp(name, "/libcudart.so", 13) != 0)
        return 0;
    snprintf(path, 4096, "%s", info->dlpi_name);
    return 1;
}

static void *runtime_library(void)
{
    char path[4096] = "";
    dl_iterate_phdr(note_runtime, path);
    return *path ? dlopen(path, RTLD_LAZY | RTLD_NOLOAD) : NULL;
}

tfum_pointer tfum_real(enum tfum_function function)
{
    tfum_pointer found = atomic_load(&real[function]);
    if (found != NULL)
        return found;
    const struct row *row = &table[function];
    void *library = row->library == DRIVER ? driver_library() : runtime_library();
    if (library != NULL) {
        found = to_function(real_dlsym()(library, row->name));
        atomic_store(&real[function], found);
    } else if (row->library == RUNTIME) {
        /* A stub that will load the runtime: not kept, since the runtime's own can be found then. */
        found = to_function(real_dlsym()(RTLD_NEXT, row->name));
    }
    return found;
}

static const struct row *replaced(const char *name)
{
    if (name[0] != 'c' || name[1] != 'u') /* most calls of dlsym are about something else */
        return NULL;
    for (int i = 0; i < TFUM_REPLACED_COUNT; i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

/* Handles such as RTLD_NEXT mean "after the caller", whom dlsym knows by its return address. So calls that are none of
 * the shim's business are forwarded as a jump (sibling call), which leaves that address alone; the build asks for it.
 */
void *dlsym(void *restrict handle, const char *restrict name)
{
    const struct row *row = replaced(name);
    /* A runtime function that is asked for while the shim calls the runtime: by a stub, which would otherwise come back
     * here for ever where the runtime library has an unusual name. */
    if (row == NULL || (row->library == RUNTIME && tfum_depth > 0))
        return real_dlsym()(handle, name);
    void *found = real_dlsym()(handle, name);
    if (found == NULL)
        return NULL;
    bool own = found == to_object(row->replacement[TFUM_SYMBOL]);
    if (own && tfum_real((enum tfum_function)(row - table)) == NULL)
        return NULL; /* a program that looks whether CUDA is there shall not find the shim instead */
    return to_object(row->replacement[TFUM_DLSYM]);
}

void *tfum_proc_address(const char *name, int version, void *found)
{
    const struct row *best = NULL;
    for (int i = 0; i < TFUM_REPLACED_COUNT; i++) {
        const struct row *row = &table[i];
        if (row->base != NULL && strcmp(row->base, name) == 0 && row->since <= version &&
            (best == NULL || row->since > best->since))
            best = row;
    }
    return best && found ? to_object(best->replacement[TFUM_PROC_ADDRESS]) : found;
}

uint64_t tfum_calls(unsigned function, unsigned route)
{
    return atomic_load_explicit(&calls[function][route], memory_order_relaxed);
}

void tfum_forget_calls(void)
{
    for (int i = 0; i < TFUM_REPLACED_COUNT; i++)
        for (int route = 0; route < TFUM_ROUTES; route++)
            atomic_store(&calls[i][route], 0);
}
