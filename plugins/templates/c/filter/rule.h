// The rule: while a user is quiet, only their contacts may see them.
#pragma once

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    // The `status` in a user's metadata that means quiet.
    char status[128];
} config_t;

// Reads a configuration. Returns NULL, or what is wrong with it.
const char *parse(config_t *config, const char *json, size_t len);

// Whether only contacts may see a user with this status.
bool is_quiet(const config_t *config, const char *status, size_t len);
