// Reads a configuration, which is JSON, value by value. Once something isn't as
// it was asked for, `ok` is false, and nothing more is read.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const char *at, *end;
    bool ok, first;
} json_t;

static inline json_t json_begin(const char *text, size_t len) {
    return (json_t){.at = text, .end = text + len, .ok = true, .first = true};
}

static inline void json_space(json_t *json) {
    while (json->at < json->end && memchr(" \t\r\n", *json->at, 4)) json->at++;
}

static inline bool json_is(json_t *json, char wanted) {
    json_space(json);
    if (!json->ok || json->at == json->end || *json->at != wanted) return false;
    json->at++;
    return true;
}

// Begins an object ('{') or a list ('[').
static inline void json_open(json_t *json, char bracket) {
    json->ok = json_is(json, bracket);
    json->first = true;
}

// Whether another element follows. If not, this ends the object ('}') or the
// list (']').
static inline bool json_more(json_t *json, char bracket) {
    if (!json->ok || json_is(json, bracket)) {
        json->first = false;
        return false;
    }
    json->ok = json->first || json_is(json, ',');
    json->first = false;
    return json->ok;
}

// The four digits of a \u, or -1.
static inline int32_t json_hex(json_t *json) {
    int32_t code = 0;
    for (int i = 0; i < 4; i++) {
        if (json->at == json->end) return -1;
        char c = *json->at++;
        if (c >= '0' && c <= '9') code = code * 16 + (c - '0');
        else if (c >= 'a' && c <= 'f') code = code * 16 + (c - 'a' + 10);
        else if (c >= 'A' && c <= 'F') code = code * 16 + (c - 'A' + 10);
        else return -1;
    }
    return code;
}

// The character that an escape stands for, behind its backslash, or -1.
static inline int32_t json_escape(json_t *json) {
    static const char names[] = "\"\\/bfnrt", characters[] = "\"\\/\b\f\n\r\t";
    if (json->at == json->end) return -1;
    char name = *json->at++;
    if (name != 'u') {
        const char *found = name ? strchr(names, name) : NULL;
        return found ? characters[found - names] : -1;
    }
    int32_t code = json_hex(json);
    if (code < 0xd800 || code > 0xdfff) return code;
    // Two of them for a character beyond 16 bits.
    if (code > 0xdbff || json->end - json->at < 2 || memcmp(json->at, "\\u", 2)) return -1;
    json->at += 2;
    int32_t low = json_hex(json);
    if (low < 0xdc00 || low > 0xdfff) return -1;
    return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
}

// Writes a character as UTF-8, and returns how many bytes it takes.
static inline size_t json_utf8(uint32_t code, char *to) {
    size_t more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const uint8_t heads[] = {0, 0xc0, 0xe0, 0xf0};
    for (size_t i = more; i > 0; i--, code >>= 6) to[i] = (char)(0x80 | (code & 0x3f));
    to[0] = (char)(heads[more] | code);
    return more + 1;
}

// A string, which has to fit, with the 0 that ends it.
static inline bool json_string(json_t *json, char *to, size_t size) {
    json->ok = json_is(json, '"');
    size_t len = 0;
    while (json->ok) {
        if (json->at == json->end || (uint8_t)*json->at < 0x20) break;
        char c = *json->at++;
        if (c == '"') {
            to[len] = 0;
            return true;
        }
        char bytes[4] = {c};
        size_t count = 1;
        if (c == '\\') {
            int32_t code = json_escape(json);
            if (code <= 0) break;
            count = json_utf8((uint32_t)code, bytes);
        }
        if (len + count >= size) break;
        memcpy(to + len, bytes, count);
        len += count;
    }
    return json->ok = false;
}

// The key of an object's next element.
static inline bool json_key(json_t *json, char *to, size_t size) {
    return json->ok = json_string(json, to, size) && json_is(json, ':');
}

// Whether everything was read, and nothing is left.
static inline bool json_end(json_t *json) {
    json_space(json);
    return json->ok && json->at == json->end;
}
