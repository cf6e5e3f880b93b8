/* markup.h: is a picture or a page well-formed? For the tests of what writes them. */
#ifndef PROMOT_TEST_MARKUP_H
#define PROMOT_TEST_MARKUP_H

#include <stdbool.h>
#include <string.h>

#include "../data/files.h"

static int count_of(const char *text, const char *what)
{
    int count = 0;
    for (const char *at = text; (at = strstr(at, what)); at += strlen(what)) count++;
    return count;
}

/* The name of a tag; 0 when there is none. */
static size_t tag_length(const char *at)
{
    return strspn(at, "abcdefghijklmnopqrstuvwxyz0123456789");
}

static bool is_entity(const char *at)
{
    return strncmp(at, "&amp;", 5) == 0 || strncmp(at, "&lt;", 4) == 0 || strncmp(at, "&gt;", 4) == 0 ||
           strncmp(at, "&quot;", 6) == 0;
}

/* NULL, or where a text stops to be well-formed XML, as far as the pictures use XML: elements that are closed in order,
 * attributes in double quotes, five escaped characters, no control characters but \n and \t. */
static const char *malformed_at(const char *xml)
{
    const char *open[64];
    size_t depth = 0, elements = 0;
    if (utf8_valid_length(xml, strlen(xml)) != strlen(xml)) return xml;
    for (const char *at = xml; *at; at++) {
        if ((unsigned char)*at < ' ' && *at != '\n' && *at != '\t') return at;
        if (*at == '&' && !is_entity(at)) return at;
        if (*at != '<') continue;
        const char *name = at + (at[1] == '/' ? 2 : 1);
        size_t length = tag_length(name);
        if (length == 0) return at;
        if (name == at + 2) { /* </name> */
            if (depth == 0 || tag_length(open[--depth]) != length || strncmp(open[depth], name, length) != 0) return at;
            if (name[length] != '>') return at;
            at = name + length;
            continue;
        }
        if (depth == 0 && elements++ > 0) return at; /* a second root */
        for (at = name + length; *at == ' ';) {
            at += strspn(at, " ");
            at += strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-");
            if (strncmp(at, "=\"", 2) != 0) return at;
            at += 2;
            size_t value = strcspn(at, "\"<&");
            if (at[value] != '"') return at;
            at += value + 1;
        }
        if (*at == '>') {
            if (depth == 64) return at;
            open[depth++] = name;
        } else if (*at != '/' || *++at != '>') {
            return at;
        }
    }
    return depth == 0 && elements == 1 ? NULL : xml + strlen(xml);
}

#endif
