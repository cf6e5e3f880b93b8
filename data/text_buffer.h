/* text_buffer.h: a text that grows piece by piece, with the quoting of CSV, XML and JSON: what results.c and report.c
 * write with.
 *
 * Texts from elsewhere may hold anything: a byte that is not UTF-8, and a control character that the format cannot
 * hold, comes out as U+FFFD. Numbers are written with a point, since promot never sets a locale. */
#ifndef PROMOT_TEXT_BUFFER_H
#define PROMOT_TEXT_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Start from {0}. `failed` is set when memory ran out, and stays: callers write freely and text_take looks at it. */
typedef struct {
    char *bytes;
    size_t length, capacity;
    bool failed;
} TextBuffer;

void text_put(TextBuffer *out, const char *text);
void text_put_bytes(TextBuffer *out, const char *bytes, size_t count);
void text_put_code(TextBuffer *out, int32_t code_point);
__attribute__((format(printf, 2, 3))) void text_put_format(TextBuffer *out, const char *format, ...);

void text_put_plain(TextBuffer *out, const char *text);  /* for a terminal: control characters become spaces */
void text_put_csv(TextBuffer *out, const char *field);   /* RFC 4180: quoted where it must be */
void text_put_xml(TextBuffer *out, const char *text);    /* as content or between double quotes */
void text_put_json(TextBuffer *out, const char *text);   /* with its quotes */
void text_put_number(TextBuffer *out, double value);     /* the shortest of 15 to 17 digits that reads back as it is */

char *text_take(TextBuffer *out); /* to be freed; NULL when memory ran out. The buffer is {0} again */

/* The next code point, U+FFFD for a byte that is not UTF-8; 0 at the end, where *at stays. */
int32_t text_next(const char **at);
size_t text_columns(const char *text); /* how wide a terminal shows what text_put_plain writes */

#endif
