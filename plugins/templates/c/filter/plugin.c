// A filter: what the host calls. The rule itself is in rule.c.
#include "filter.h"
#include "rule.h"

static config_t config;

bool exports_filter_configure(filter_string_t *json, filter_string_t *err) {
    const char *wrong = parse(&config, (const char *)json->ptr, json->len);
    if (wrong) filter_string_dup(err, wrong);
    filter_string_free(json);
    return !wrong;
}

// The text under a key of the metadata is compared, and freed.
static bool user_is_quiet(void) {
    filter_string_t key;
    presence_plugin_events_value_t status;
    filter_string_set(&key, "status");
    if (!presence_plugin_events_get(&key, &status)) return false;
    const filter_string_t *text = &status.val.text;
    bool quiet = status.tag == PRESENCE_PLUGIN_EVENTS_VALUE_TEXT &&
                 is_quiet(&config, (const char *)text->ptr, text->len);
    presence_plugin_events_value_free(&status);
    return quiet;
}

filter_audience_t exports_filter_filter(filter_event_t *event, filter_audience_t audience) {
    if (user_is_quiet()) {
        filter_string_t why;
        filter_string_set(&why, "the user is quiet: only contacts may see them");
        presence_plugin_host_explain(&why);
        filter_audience_t contacts = presence_plugin_directory_contacts(&event->user);
        audience = presence_plugin_audiences_intersection(audience, contacts);
    }
    filter_event_free(event);
    return audience;
}
