#include "rule.h"

#include <string.h>

#include "json.h"

static bool read_keys(json_t *json, keys_t *keys) {
    keys->count = 0;
    json_open(json, '[');
    while (json_more(json, ']')) {
        if (keys->count == sizeof keys->key / sizeof *keys->key) return false;
        if (!json_string(json, keys->key[keys->count++], sizeof *keys->key)) return false;
    }
    return json->ok;
}

const char *parse(config_t *config, const char *text, size_t len) {
    static char unknown[] = "configuration: unknown key `________________________________`";
    char *place = strchr(unknown, '`') + 1;
    char key[33];

    *config = (config_t){.contacts = {2, {"device", "location"}}, .others = {1, {"device"}}};
    json_t json = json_begin(text, len);
    json_open(&json, '{');
    while (json_more(&json, '}') && json_key(&json, key, sizeof key)) {
        bool is_contacts = strcmp(key, "contacts") == 0;
        if (!is_contacts && strcmp(key, "others") != 0) {
            strcat(strcpy(place, key), "`");
            return unknown;
        }
        if (!read_keys(&json, is_contacts ? &config->contacts : &config->others)) {
            return "configuration: `contacts` and `others` must be lists of at most 16 strings "
                   "of less than 64 bytes";
        }
    }
    return json_end(&json) ? NULL : "configuration: it is not an object of short keys";
}
