// A redactor: what the host calls. The configuration is in rule.c.
#include <stdlib.h>

#include "redactor.h"
#include "rule.h"

static config_t config;

bool exports_redactor_configure(redactor_string_t *json, redactor_string_t *err) {
    const char *wrong = parse(&config, (const char *)json->ptr, json->len);
    if (wrong) redactor_string_dup(err, wrong);
    redactor_string_free(json);
    return !wrong;
}

// What is returned is copied: the bindings free it.
static redactor_rendition_t rendition(redactor_audience_t audience, const keys_t *keys, bool last_seen) {
    redactor_list_string_t list = {.len = keys->count};
    list.ptr = keys->count ? malloc(keys->count * sizeof *list.ptr) : NULL;
    for (size_t i = 0; i < keys->count; i++) redactor_string_dup(&list.ptr[i], keys->key[i]);
    return (redactor_rendition_t){.audience = audience, .keys = list, .last_seen = last_seen};
}

void exports_redactor_redact(redactor_event_t *event, redactor_audience_t audience,
                             redactor_list_rendition_t *ret) {
    redactor_audience_t contacts = presence_plugin_audiences_intersection(
        audience, presence_plugin_directory_contacts(&event->user));
    redactor_audience_t others = presence_plugin_audiences_difference(audience, contacts);
    redactor_event_free(event);
    ret->len = 2;
    ret->ptr = malloc(2 * sizeof *ret->ptr);
    ret->ptr[0] = rendition(contacts, &config.contacts, true);
    ret->ptr[1] = rendition(others, &config.others, false);
}
