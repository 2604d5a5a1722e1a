// clang-format Language: C
/* The shim's options: one table of environment variables, read once when the shim is loaded. */
#ifndef TFUM_OPTIONS_H
#define TFUM_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Stands for "not given": the ceiling then follows from the free device memory and the host budget. */
#define TFUM_AUTOMATIC UINT64_MAX

struct tfum_options {
    uint64_t ceiling;     /* bytes that may be allocated at one time, or TFUM_AUTOMATIC */
    uint64_t host_budget; /* bytes of host memory on top of the device's */
    uint64_t threshold;   /* allocations smaller than this stay in device memory */
    uint64_t show;        /* 1: say on standard error that the shim is active */
    const char *report;   /* file for the statistics at exit ("-": standard error), or NULL */
    const char *trace;    /* file for the allocation trace, or NULL */
};

struct tfum_option {
    const char *name; /* of the environment variable */
    enum { TFUM_BYTES, TFUM_SWITCH, TFUM_FILE } kind;
    uint64_t initial; /* value where the variable is not set; files are then off */
    size_t offset;    /* in struct tfum_options */
};

extern const struct tfum_option tfum_option_table[];
extern const size_t tfum_option_count;

/* Reads the options from `environment`, a list of NAME=value that ends with NULL. False where a value is malformed or
 * a TFUM_ variable unknown; `error` then holds one sentence with the remedy. */
bool tfum_options_read(char *const *environment, struct tfum_options *options, char *error, size_t error_size);

#endif
