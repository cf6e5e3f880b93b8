/* unicode_text.h: text as code points, under the rules of Python's str and re: what metrics.c stands on.
 *
 * The programs that define the scores are written in Python, so "lower-case", "white space" and "word character" mean
 * what Python means by them. Each rule says how it is built from the properties that utf8proc knows. */
#ifndef PROMOT_UNICODE_TEXT_H
#define PROMOT_UNICODE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A growing list of symbols: the code points of a text, or the numbers of its words. Start from {0}.
 * `failed` is set when memory ran out, and stays: callers push freely and look at it once, at the end. */
typedef struct {
    uint32_t *items;
    size_t count, capacity;
    bool failed;
} Symbols;

void symbols_push(Symbols *list, uint32_t symbol);
void symbols_free(Symbols *list);

void text_append_utf8(Symbols *text, const char *utf8);     /* a byte that is not UTF-8 becomes U+FFFD */
void text_append_lower(Symbols *text, const Symbols *from); /* str.lower() */

bool char_is_space(uint32_t c);       /* str.isspace(): where str.split() and str.strip() cut */
bool char_is_word(uint32_t c);        /* \w of re */
bool char_is_number(uint32_t c);      /* \p{N} of the regex package */
bool char_is_punctuation(uint32_t c); /* \p{P} */
bool char_is_symbol(uint32_t c);      /* \p{S} */

/* A text that is being rewritten. The reference programs apply one regular expression after another; here every pass
 * reads `text` and writes `next`, which then takes its place. A pass goes from left to right and looks on behind the
 * end of a match: what a match has consumed, a later match of the same pass no longer sees. */
typedef struct {
    Symbols text, next;
} Draft;

typedef bool CharTest(uint32_t c);
typedef enum { SPACE_BEFORE, SPACE_AFTER } OuterSpace;

void draft_free(Draft *draft);
void draft_turn(Draft *draft); /* the end of a pass: `next` becomes `text`, and a new `next` is empty */
void draft_lower(Draft *draft);
void draft_replace(Draft *draft, const char *what, const char *with); /* str.replace(), both ASCII */
void draft_isolate(Draft *draft, CharTest *is_x);                     /* (X) becomes " \1 " */

/* (X)(Y) becomes "\1 \2 " (SPACE_AFTER) or " \1 \2" (SPACE_BEFORE). */
void draft_part(Draft *draft, CharTest *is_x, CharTest *is_y, OuterSpace space);

bool text_starts_with(const uint32_t *text, size_t count, const char *ascii);

#endif
