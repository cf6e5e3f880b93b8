/* text_buffer.c: see text_buffer.h. */
#include "text_buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

static const int32_t REPLACEMENT = 0xFFFD;

/* Room for `more` bytes and a NUL behind them. */
static bool reserve(TextBuffer *out, size_t more)
{
    size_t wanted = out->length + more + 1, capacity = out->capacity ? out->capacity : 256;
    if (more > (size_t)PTRDIFF_MAX / 2 - out->length) out->failed = true; /* no text is so long: a slip elsewhere */
    if (out->failed) return false;
    if (wanted <= out->capacity) return true;
    while (capacity < wanted) capacity *= 2;
    char *larger = realloc(out->bytes, capacity);
    if (!larger) {
        out->failed = true;
        return false;
    }
    out->bytes = larger;
    out->capacity = capacity;
    return true;
}

void text_put_bytes(TextBuffer *out, const char *bytes, size_t count)
{
    if (!reserve(out, count)) return;
    memcpy(out->bytes + out->length, bytes, count);
    out->length += count;
}

void text_put(TextBuffer *out, const char *text)
{
    text_put_bytes(out, text, strlen(text));
}

void text_put_code(TextBuffer *out, int32_t code_point)
{
    utf8proc_uint8_t bytes[4];
    utf8proc_ssize_t count = utf8proc_encode_char(code_point, bytes);
    text_put_bytes(out, (const char *)bytes, (size_t)count);
}

void text_put_format(TextBuffer *out, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) out->failed = true;
    if (length < 0 || !reserve(out, (size_t)length)) return;
    va_start(arguments, format);
    vsnprintf(out->bytes + out->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    out->length += (size_t)length;
}

/* Quotes are doubled, and stand around a field with a separator, a quote, a line break or a space at an end. */
void text_put_csv(TextBuffer *out, const char *field)
{
    size_t length = strlen(field);
    bool quoted = strpbrk(field, ",\"\r\n\t") || (length > 0 && (field[0] == ' ' || field[length - 1] == ' '));
    if (quoted) text_put(out, "\"");
    for (const char *at = field; *at; at++) {
        if (*at == '"') text_put(out, "\"");
        text_put_bytes(out, at, 1);
    }
    if (quoted) text_put(out, "\"");
}

static bool is_control(int32_t c)
{
    return c < 0x20 || (c >= 0x7F && c < 0xA0);
}

void text_put_plain(TextBuffer *out, const char *text)
{
    for (int32_t c; (c = text_next(&text)) != 0;) text_put_code(out, is_control(c) ? ' ' : c);
}

/* What XML 1.0 cannot hold, not even escaped, and what HTML calls a parse error. */
static bool is_no_xml(int32_t c)
{
    return (is_control(c) && c != '\n' && c != '\t') || (c & 0xFFFE) == 0xFFFE || (c >= 0xFDD0 && c <= 0xFDEF);
}

void text_put_xml(TextBuffer *out, const char *text)
{
    for (int32_t c; (c = text_next(&text)) != 0;) {
        switch (c) {
        case '&':
            text_put(out, "&amp;");
            break;
        case '<':
            text_put(out, "&lt;");
            break;
        case '>':
            text_put(out, "&gt;");
            break;
        case '"':
            text_put(out, "&quot;");
            break;
        default:
            text_put_code(out, is_no_xml(c) ? REPLACEMENT : c);
        }
    }
}

void text_put_json(TextBuffer *out, const char *text)
{
    text_put(out, "\"");
    for (int32_t c; (c = text_next(&text)) != 0;) {
        if (c == '"' || c == '\\')
            text_put_format(out, "\\%c", (char)c);
        else if (c < 0x20)
            text_put_format(out, "\\u%04x", (unsigned)c);
        else
            text_put_code(out, c);
    }
    text_put(out, "\"");
}

/* 17 digits tell any two doubles apart; most numbers need no more than 15, and 0.1 looks better with them. */
void text_put_number(TextBuffer *out, double value)
{
    char number[32];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(number, sizeof number, "%.*g", digits, value);
        if (strtod(number, NULL) == value) break;
    }
    text_put(out, number);
}

char *text_take(TextBuffer *out)
{
    char *text = NULL;
    if (reserve(out, 0)) {
        text = out->bytes;
        text[out->length] = '\0';
    } else {
        free(out->bytes);
    }
    *out = (TextBuffer){0};
    return text;
}

int32_t text_next(const char **at)
{
    const utf8proc_uint8_t *bytes = (const utf8proc_uint8_t *)*at;
    utf8proc_int32_t c;
    size_t rest = 0;
    while (rest < 4 && bytes[rest]) rest++; /* the longest sequence has 4 bytes */
    if (rest == 0) return 0;
    utf8proc_ssize_t length = utf8proc_iterate(bytes, (utf8proc_ssize_t)rest, &c);
    *at += length > 0 ? length : 1;
    return length > 0 ? c : REPLACEMENT;
}

size_t text_columns(const char *text)
{
    size_t columns = 0;
    for (int32_t c; (c = text_next(&text)) != 0;) columns += is_control(c) ? 1 : (size_t)utf8proc_charwidth(c);
    return columns;
}
