#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "rule.h"

static const char *read(config_t *config, const char *json) {
    return parse(config, json, strlen(json));
}

int main(void) {
    config_t config;
    assert(!read(&config, "{}"));
    assert(is_quiet(&config, "quiet", 5));
    assert(!is_quiet(&config, "quie", 4));

    assert(!read(&config, " { \"status\" : \"b\\u00fcsy \\ud83d\\ude00\" } "));
    assert(is_quiet(&config, "büsy 😀", strlen("büsy 😀")));

    assert(strstr(read(&config, "{\"stauts\": \"busy\"}"), "unknown key `stauts`"));
    assert(strstr(read(&config, "{\"status\": 1}"), "must be a string"));
    const char *const broken[] = {"", "[]", "{", "{} {}", "{\"status\" \"x\"}", "{,}"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        assert(read(&config, broken[i]));
    }
    puts("ok");
    return 0;
}
