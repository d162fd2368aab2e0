// The rule: a user's contacts get more of the metadata than others do.
#pragma once

#include <stddef.h>

// Metadata keys that viewers get.
typedef struct {
    size_t count;
    char key[16][64];
} keys_t;

typedef struct {
    keys_t contacts, others;
} config_t;

// Reads a configuration. Returns NULL, or what is wrong with it.
const char *parse(config_t *config, const char *json, size_t len);
