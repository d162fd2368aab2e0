#include "rule.h"

#include <string.h>

#include "json.h"

const char *parse(config_t *config, const char *text, size_t len) {
    static char unknown[] = "configuration: unknown key `________________________________`";
    char *place = strchr(unknown, '`') + 1;
    char key[33];

    strcpy(config->status, "quiet");
    json_t json = json_begin(text, len);
    json_open(&json, '{');
    while (json_more(&json, '}') && json_key(&json, key, sizeof key)) {
        if (strcmp(key, "status") != 0) {
            strcat(strcpy(place, key), "`");
            return unknown;
        }
        if (!json_string(&json, config->status, sizeof config->status)) {
            return "configuration: `status` must be a string of less than 128 bytes";
        }
    }
    return json_end(&json) ? NULL : "configuration: it is not an object of short keys";
}

bool is_quiet(const config_t *config, const char *status, size_t len) {
    return strlen(config->status) == len && memcmp(config->status, status, len) == 0;
}
