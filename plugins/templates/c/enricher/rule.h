// The rule: what kind of client a user has, as the user agent tells.
#pragma once

#include <stddef.h>

typedef struct {
    // The metadata key that the kind goes to.
    char into[128];
} config_t;

// Reads a configuration. Returns NULL, or what is wrong with it.
const char *parse(config_t *config, const char *json, size_t len);

// "mobile" or "desktop".
const char *kind(const char *user_agent, size_t len);
