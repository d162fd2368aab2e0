#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "rule.h"

static const char *read(config_t *config, const char *json) {
    return parse(config, json, strlen(json));
}

int main(void) {
    config_t config;
    assert(!read(&config, "{\"others\": []}"));
    assert(config.contacts.count == 2 && strcmp(config.contacts.key[1], "location") == 0);
    assert(config.others.count == 0);

    assert(!read(&config, " { \"contacts\" : [ \"a\" , \"b\\u00fc \\ud83d\\ude00\" ] , \"others\":[\"c\"]} "));
    assert(config.contacts.count == 2 && strcmp(config.contacts.key[1], "bü 😀") == 0);
    assert(config.others.count == 1);

    assert(strstr(read(&config, "{\"contact\": []}"), "unknown key `contact`"));
    assert(strstr(read(&config, "{\"others\": \"device\"}"), "must be lists"));
    const char *const broken[] = {"", "[]", "{", "{} {}", "{\"others\" []}", "{,}", "{\"others\":[\"a\",]}"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        assert(read(&config, broken[i]));
    }
    puts("ok");
    return 0;
}
