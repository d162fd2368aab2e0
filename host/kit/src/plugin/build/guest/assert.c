// Logs an assertion that failed, and ends the call. Without the standard library's output,
// which would ask for WASI.
#include "assert.h"

#include <string.h>

#include "WORLD.h"

static char text[512];

static void add(const char *part) {
    strncat(text, part, sizeof text - 1 - strlen(text));
}

_Noreturn void presence_assertion_failed(const char *condition, const char *file, int line) {
    char digits[12];
    char *first = digits + sizeof digits - 1;
    *first = '\0';
    do {
        *--first = (char)('0' + line % 10);
        line /= 10;
    } while (line > 0);
    text[0] = '\0';
    add("assertion failed: ");
    strncat(text, condition, 400);
    add(", at ");
    add(file);
    add(":");
    add(first);
    WORLD_string_t said = {(uint8_t *)text, strlen(text)};
    presence_plugin_host_log(PRESENCE_PLUGIN_HOST_LEVEL_ERROR, &said);
    __builtin_trap();
}
