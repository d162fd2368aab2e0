// An enricher: what the host calls. The rule itself is in rule.c.
#include <stdlib.h>

#include "enricher.h"
#include "rule.h"

static config_t config;

bool exports_enricher_configure(enricher_string_t *json, enricher_string_t *err) {
    const char *wrong = parse(&config, (const char *)json->ptr, json->len);
    if (wrong) enricher_string_dup(err, wrong);
    enricher_string_free(json);
    return !wrong;
}

void exports_enricher_enrich(enricher_event_t *event, enricher_list_change_t *ret) {
    enricher_string_t key;
    presence_plugin_events_value_t user_agent;
    enricher_event_free(event);
    *ret = (enricher_list_change_t){0};
    enricher_string_set(&key, "userAgent");
    if (!presence_plugin_events_get(&key, &user_agent)) return;
    if (user_agent.tag == PRESENCE_PLUGIN_EVENTS_VALUE_TEXT) {
        const enricher_string_t *text = &user_agent.val.text;
        // What is returned is copied: the bindings free it.
        enricher_change_t *change = malloc(sizeof *change);
        enricher_string_dup(&change->key, config.into);
        change->value.is_some = true;
        change->value.val.tag = PRESENCE_PLUGIN_EVENTS_VALUE_TEXT;
        enricher_string_dup(&change->value.val.val.text, kind((const char *)text->ptr, text->len));
        *ret = (enricher_list_change_t){.ptr = change, .len = 1};
    }
    presence_plugin_events_value_free(&user_agent);
}
