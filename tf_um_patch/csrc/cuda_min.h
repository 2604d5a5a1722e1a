// clang-format Language: C
/* The few types and constants of CUDA that the shim and the operations need, so that no CUDA toolkit is needed to
 * build.
 *
 * Values are part of CUDA's binary interface and do not change between versions. Results are plain ints: CUresult and
 * cudaError_t are enumerations of that size. */
#ifndef TFUM_CUDA_MIN_H
#define TFUM_CUDA_MIN_H

#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef int cudaError_t;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr; /* of every function whose name ends in _v2 */
typedef unsigned int CUdeviceptr_v1;    /* of the functions from before CUDA 3.2 */
typedef void *CUstream;
typedef void *CUevent;
typedef void *CUcontext;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_SHARED_OBJECT_INIT_FAILED = 303,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_SUPPORTED = 801,
};

enum {
    CU_MEM_ATTACH_GLOBAL = 1,
    CU_DEVICE_CPU = -1,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_STREAM_NON_BLOCKING = 1,
    CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY = 83,
    CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS = 89,
    CU_POINTER_ATTRIBUTE_IS_MANAGED = 8,
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
};

/* Alignment that cuMemAlloc and cudaMalloc promise. */
enum { CUDA_ALIGNMENT = 256 };

#endif
