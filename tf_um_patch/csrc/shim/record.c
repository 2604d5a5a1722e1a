#define _GNU_SOURCE
#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "statistics.h"

enum { LINE = 512, NOT_OPEN = -1, NOT_USABLE = -2 };

static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static atomic_int trace_file = NOT_OPEN;
static atomic_bool in_child; /* of a fork */

/* Whether this process writes a file of that name. */
static bool is_ours(const char *pattern)
{
    return pattern != NULL && (!atomic_load(&in_child) || strstr(pattern, "%p") != NULL);
}

static bool write_all(int file, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t written = write(file, text, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        text += written;
        length -= (size_t)written;
    }
    return true;
}

void tfum_say(const char *format, ...)
{
    char line[LINE] = "tfum: ";
    size_t used = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line + used, sizeof line - used - 1, format, arguments);
    va_end(arguments);
    if (length < 0)
        return;
    used = strlen(line);
    line[used] = '\n';
    write_all(STDERR_FILENO, line, used + 1);
}

/* Opens a file for this process: %p in its name stands for the process's number. "-" is standard error. */
static int open_file(const char *pattern)
{
    char path[4096];
    const char *mark = strstr(pattern, "%p");
    if (strcmp(pattern, "-") == 0)
        return STDERR_FILENO;
    int length =
        mark ? snprintf(path, sizeof path, "%.*s%ld%s", (int)(mark - pattern), pattern, (long)getpid(), mark + 2)
             : snprintf(path, sizeof path, "%s", pattern);
    if (length < 0 || (size_t)length >= sizeof path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
}

static int open_trace(const char *pattern)
{
    static const char header[] = "# tfum trace 1: nanoseconds event address bytes place result\n";
    pthread_mutex_lock(&opening);
    int file = atomic_load(&trace_file);
    if (file == NOT_OPEN) {
        file = open_file(pattern);
        if (file < 0 || !write_all(file, header, sizeof header - 1)) {
            tfum_say("%s cannot be written (%s), so there is no trace: give TFUM_TRACE another path", pattern,
                     strerror(errno));
            file = NOT_USABLE;
        }
        atomic_store(&trace_file, file);
    }
    pthread_mutex_unlock(&opening);
    return file;
}

void tfum_trace(const struct tfum_options *options, const char *what, struct tfum_entry entry, int result)
{
    if (!is_ours(options->trace))
        return;
    int file = atomic_load(&trace_file);
    if (file == NOT_OPEN)
        file = open_trace(options->trace);
    char line[LINE];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int length = snprintf(line, sizeof line, "%" PRIu64 " %s 0x%" PRIx64 " %" PRIu64 " %s %d\n",
                          (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec, what, entry.address, entry.bytes,
                          entry.place == TFUM_MANAGED ? "managed" : "device", result);
    if (file < 0 || !write_all(file, line, (size_t)length))
        tfum_note(TFUM_UNWRITTEN);
}

void tfum_write_report(const struct tfum_options *options)
{
    if (!is_ours(options->report))
        return;
    int file = open_file(options->report);
    if (file < 0) {
        tfum_say("%s cannot be written (%s), so there is no report: give TFUM_REPORT another path", options->report,
                 strerror(errno));
        return;
    }
    const char *name;
    bool written = true;
    for (unsigned i = 0; written && (name = tfum_statistic_name(i)) != NULL; i++) {
        char line[LINE];
        int length = snprintf(line, sizeof line, "%s %" PRIu64 "\n", name, tfum_statistic(i));
        written = write_all(file, line, (size_t)length);
    }
    if (!written)
        tfum_say("the report %s is incomplete (%s)", options->report, strerror(errno));
    if (file != STDERR_FILENO)
        close(file);
}

void tfum_record_in_child(void)
{
    atomic_store(&in_child, true);
    int file = atomic_exchange(&trace_file, NOT_OPEN);
    if (file >= 0 && file != STDERR_FILENO)
        close(file);
    pthread_mutex_init(&opening, NULL); /* another thread of the parent may have held it */
}
