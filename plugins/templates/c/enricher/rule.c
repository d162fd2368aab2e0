#include "rule.h"

#include <string.h>

#include "json.h"

const char *parse(config_t *config, const char *text, size_t len) {
    static char unknown[] = "configuration: unknown key `________________________________`";
    char *place = strchr(unknown, '`') + 1;
    char key[33];

    strcpy(config->into, "client");
    json_t json = json_begin(text, len);
    json_open(&json, '{');
    while (json_more(&json, '}') && json_key(&json, key, sizeof key)) {
        if (strcmp(key, "into") != 0) {
            strcat(strcpy(place, key), "`");
            return unknown;
        }
        if (!json_string(&json, config->into, sizeof config->into)) {
            return "configuration: `into` must be a string of less than 128 bytes";
        }
    }
    return json_end(&json) ? NULL : "configuration: it is not an object of short keys";
}

// Browsers of phones and tablets have "Mobi" in their user agent.
const char *kind(const char *user_agent, size_t len) {
    for (size_t i = 0; i + 4 <= len; i++) {
        if (memcmp(user_agent + i, "Mobi", 4) == 0) return "mobile";
    }
    return "desktop";
}
