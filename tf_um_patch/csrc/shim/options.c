#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char prefix[] = "TFUM_";

const struct tfum_option tfum_option_table[] = {
    {"TFUM_CEILING", TFUM_BYTES, TFUM_AUTOMATIC, offsetof(struct tfum_options, ceiling)},
    {"TFUM_HOST_BUDGET", TFUM_BYTES, 0, offsetof(struct tfum_options, host_budget)},
    {"TFUM_THRESHOLD", TFUM_BYTES, 2 << 20, offsetof(struct tfum_options, threshold)},
    {"TFUM_SHOW", TFUM_SWITCH, 0, offsetof(struct tfum_options, show)},
    {"TFUM_REPORT", TFUM_FILE, 0, offsetof(struct tfum_options, report)},
    {"TFUM_TRACE", TFUM_FILE, 0, offsetof(struct tfum_options, trace)},
};
const size_t tfum_option_count = sizeof tfum_option_table / sizeof *tfum_option_table;

static const struct tfum_option *find(const char *name, size_t length)
{
    for (size_t i = 0; i < tfum_option_count; i++) {
        const struct tfum_option *option = &tfum_option_table[i];
        if (strlen(option->name) == length && memcmp(option->name, name, length) == 0)
            return option;
    }
    return NULL;
}

static bool parse_number(const char *text, uint64_t largest, uint64_t *value)
{
    char *end;
    if (*text < '0' || *text > '9') /* strtoull takes signs and leading spaces, and wraps negative numbers around */
        return false;
    errno = 0;
    unsigned long long parsed = strtoull(text, &end, 10);
    if (errno || *end || parsed > largest)
        return false;
    *value = parsed;
    return true;
}

static bool set(const struct tfum_option *option, const char *text, struct tfum_options *options, char *error,
                size_t error_size)
{
    char *field = (char *)options + option->offset;
    if (option->kind == TFUM_FILE) {
        const char *path = *text ? text : NULL;
        memcpy(field, &path, sizeof path);
        return true;
    }
    uint64_t value;
    bool is_switch = option->kind == TFUM_SWITCH;
    if (!parse_number(text, is_switch ? 1 : INT64_MAX, &value)) {
        snprintf(error, error_size, "%s=%s cannot be used: set it to %s, or unset it", option->name, text,
                 is_switch ? "0 or 1" : "a whole number of bytes, 0 or more");
        return false;
    }
    memcpy(field, &value, sizeof value);
    return true;
}

static void say_unknown(const char *name, size_t length, char *error, size_t error_size)
{
    int used =
        snprintf(error, error_size, "%.*s is no variable of the shim: unset it, or use one of", (int)length, name);
    for (size_t i = 0; i < tfum_option_count && used > 0 && (size_t)used < error_size; i++)
        used += snprintf(error + used, error_size - (size_t)used, "%s %s", i ? "," : "", tfum_option_table[i].name);
}

bool tfum_options_read(char *const *environment, struct tfum_options *options, char *error, size_t error_size)
{
    memset(options, 0, sizeof *options);
    for (size_t i = 0; i < tfum_option_count; i++)
        if (tfum_option_table[i].kind != TFUM_FILE)
            memcpy((char *)options + tfum_option_table[i].offset, &tfum_option_table[i].initial, sizeof(uint64_t));
    for (; environment && *environment; environment++) {
        const char *text = *environment;
        size_t length = strcspn(text, "=");
        if (strncmp(text, prefix, sizeof prefix - 1) != 0 || text[length] != '=')
            continue;
        const struct tfum_option *option = find(text, length);
        if (option == NULL) {
            say_unknown(text, length, error, error_size);
            return false;
        }
        if (!set(option, text + length + 1, options, error, error_size))
            return false;
    }
    return true;
}
