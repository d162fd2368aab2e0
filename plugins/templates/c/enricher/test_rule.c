#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "rule.h"

static const char *read(config_t *config, const char *json) {
    return parse(config, json, strlen(json));
}

static const char *kind_of(const char *user_agent) {
    return kind(user_agent, strlen(user_agent));
}

int main(void) {
    config_t config;
    assert(strcmp(kind_of("Mozilla/5.0 (iPhone) Mobile/15E148"), "mobile") == 0);
    assert(strcmp(kind_of("Mozilla/5.0 (X11; Linux x86_64)"), "desktop") == 0);
    assert(strcmp(kind_of("Mob"), "desktop") == 0);

    assert(!read(&config, "{}") && strcmp(config.into, "client") == 0);
    assert(!read(&config, "{\"into\": \"a\\tb\"}") && strcmp(config.into, "a\tb") == 0);
    assert(strstr(read(&config, "{\"in\": \"kind\"}"), "unknown key `in`"));
    assert(strstr(read(&config, "{\"into\": 1}"), "must be a string"));
    puts("ok");
    return 0;
}
