/* A program over a library of stubs (stubs.c), which neither links the driver nor the runtime; the shim is preloaded.
 * Prints what dlsym finds after the caller, then the shim's statistics that are not 0. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int next_landmark(void);
int cuMemAlloc_v2(unsigned long long *, size_t);
int cuMemFree_v2(unsigned long long);
int cudaMalloc(void **, size_t);
int cudaFree(void *);

enum { LARGE = 4 << 20 };

static void expect(int result, const char *what)
{
    if (result != 0) {
        fprintf(stderr, "%s returned %d\n", what, result);
        exit(1);
    }
}

int main(void)
{
    unsigned long long address;
    void *pointer;
    int (*found_alloc)(unsigned long long *, size_t);
    const char *(*name)(unsigned);
    uint64_t (*value)(unsigned);

    printf("landmark %d\n", next_landmark());
    expect(cudaMalloc(&pointer, LARGE), "cudaMalloc before the runtime was loaded");
    expect(cudaFree(pointer), "cudaFree");
    expect(cudaMalloc(&pointer, LARGE), "cudaMalloc");
    expect(cudaFree(pointer), "cudaFree");
    expect(cuMemAlloc_v2(&address, LARGE), "cuMemAlloc_v2");
    expect(cuMemFree_v2(address), "cuMemFree_v2");
    void *found = dlsym(RTLD_DEFAULT, "cuMemAlloc_v2");
    memcpy(&found_alloc, &found, sizeof found);
    expect(found_alloc(&address, LARGE), "cuMemAlloc_v2 by dlsym");

    found = dlsym(RTLD_DEFAULT, "tfum_statistic_name"), memcpy(&name, &found, sizeof found);
    found = dlsym(RTLD_DEFAULT, "tfum_statistic"), memcpy(&value, &found, sizeof found);
    for (unsigned i = 0; name(i); i++)
        if (value(i))
            printf("%s %llu\n", name(i), (unsigned long long)value(i));
    return 0;
}
