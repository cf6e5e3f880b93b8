/* unicode_text.c: see unicode_text.h. */
#include "unicode_text.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { CAPITAL_SIGMA = 0x3A3, SMALL_SIGMA = 0x3C3, FINAL_SIGMA = 0x3C2, CAPITAL_I_WITH_DOT = 0x130, DOT_ABOVE = 0x307 };

void symbols_push(Symbols *list, uint32_t symbol)
{
    if (list->failed) return;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        uint32_t *items = capacity <= SIZE_MAX / sizeof *items ? realloc(list->items, capacity * sizeof *items) : NULL;
        if (!items) {
            list->failed = true;
            return;
        }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = symbol;
}

void symbols_free(Symbols *list)
{
    free(list->items);
    *list = (Symbols){0};
}

void text_append_utf8(Symbols *text, const char *utf8)
{
    const utf8proc_uint8_t *at = (const utf8proc_uint8_t *)utf8;
    utf8proc_ssize_t left = (utf8proc_ssize_t)strlen(utf8);
    while (left > 0) {
        utf8proc_int32_t c;
        utf8proc_ssize_t used = utf8proc_iterate(at, left, &c);
        if (used <= 0) {
            c = 0xFFFD;
            used = 1;
        }
        symbols_push(text, (uint32_t)c);
        at += used;
        left -= used;
    }
}

/* ---- Character classes -------------------------------------------------------------------------------------------
 * The general category decides (Unicode Standard, section 4.5): Lu, Ll, Lt, Lm, Lo letters; Mn, Mc, Me marks; Nd, Nl,
 * No numbers; P* punctuation; S* symbols; Z* separators. */

static utf8proc_category_t category(uint32_t c)
{
    return utf8proc_category((utf8proc_int32_t)c);
}

/* White space is the separators and the control characters whose bidirectional class is B, S or WS. Zero-width
 * characters (U+200B, U+FEFF) are formats, not space. */
bool char_is_space(uint32_t c)
{
    if (c <= ' ') return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F);
    if (c < 0x80) return false;
    utf8proc_category_t k = category(c);
    return c == 0x85 || k == UTF8PROC_CATEGORY_ZS || k == UTF8PROC_CATEGORY_ZL || k == UTF8PROC_CATEGORY_ZP;
}

/* re calls a letter, a number of any kind, or _ a word character; combining marks are none, unlike in other engines. */
bool char_is_word(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return c == '_' || (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO) ||
           (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO);
}

/* The numbers, punctuation and symbols that Unicode 15.1 to 17 added and libutf8proc 2.8 (Unicode 15.0) takes for
 * unassigned. The regex package, with which sacrebleu tokenises, knows them. In order. */
static const struct {
    uint32_t first, last;
    char class;
} NEWER[] = {
    {0x1B4E, 0x1B4F, 'P'},   {0x1B7F, 0x1B7F, 'P'},   {0x20C1, 0x20C4, 'S'},   {0x2427, 0x2429, 'S'},
    {0x2B96, 0x2B96, 'S'},   {0x2E60, 0x2E63, 'P'},   {0x2FFC, 0x2FFF, 'S'},   {0x31E4, 0x31E5, 'S'},
    {0x31EF, 0x31EF, 'S'},   {0xFBC3, 0xFBD2, 'S'},   {0xFD90, 0xFD91, 'S'},   {0xFDC8, 0xFDCE, 'S'},
    {0x10D40, 0x10D49, 'N'}, {0x10D6E, 0x10D6E, 'P'}, {0x10D8E, 0x10D8F, 'S'}, {0x10EC9, 0x10ECA, 'S'},
    {0x10ED0, 0x10ED0, 'P'}, {0x10ED1, 0x10ED8, 'S'}, {0x113D4, 0x113D5, 'P'}, {0x113D7, 0x113D8, 'P'},
    {0x116D0, 0x116E3, 'N'}, {0x11BE1, 0x11BE1, 'P'}, {0x11BF0, 0x11BF9, 'N'}, {0x11DE0, 0x11DE9, 'N'},
    {0x1246F, 0x1246F, 'N'}, {0x12475, 0x1247F, 'N'}, {0x12550, 0x12686, 'N'}, {0x16130, 0x16139, 'N'},
    {0x16D6D, 0x16D6F, 'P'}, {0x16D70, 0x16D79, 'N'}, {0x16FF4, 0x16FF6, 'N'}, {0x1CC00, 0x1CCEF, 'S'},
    {0x1CCF0, 0x1CCF9, 'N'}, {0x1CCFA, 0x1CCFC, 'S'}, {0x1CD00, 0x1CEB3, 'S'}, {0x1CEBA, 0x1CED0, 'S'},
    {0x1CED2, 0x1CED4, 'S'}, {0x1CEDD, 0x1CEFD, 'S'}, {0x1D1EB, 0x1D1FF, 'S'}, {0x1D253, 0x1D25A, 'S'},
    {0x1D25D, 0x1D25E, 'S'}, {0x1D260, 0x1D27F, 'S'}, {0x1DB00, 0x1DB1C, 'S'}, {0x1E5F1, 0x1E5FA, 'N'},
    {0x1E5FF, 0x1E5FF, 'P'}, {0x1F1AE, 0x1F1AE, 'S'}, {0x1F6D8, 0x1F6D9, 'S'}, {0x1F777, 0x1F77A, 'S'},
    {0x1F7DA, 0x1F7DB, 'S'}, {0x1F7F1, 0x1F7FF, 'S'}, {0x1F8B2, 0x1F8BB, 'S'}, {0x1F8C0, 0x1F8C1, 'S'},
    {0x1F8D0, 0x1F8D8, 'S'}, {0x1FA54, 0x1FA57, 'S'}, {0x1FA89, 0x1FA8F, 'S'}, {0x1FABE, 0x1FABE, 'S'},
    {0x1FAC6, 0x1FAC6, 'S'}, {0x1FAC8, 0x1FAC8, 'S'}, {0x1FACC, 0x1FACD, 'S'}, {0x1FADC, 0x1FADD, 'S'},
    {0x1FADF, 0x1FADF, 'S'}, {0x1FAE9, 0x1FAEB, 'S'}, {0x1FAEF, 0x1FAEF, 'S'}, {0x1FAF9, 0x1FAFA, 'S'},
    {0x1FBCB, 0x1FBEF, 'S'}, {0x1FBFA, 0x1FBFA, 'S'},
};

static bool is_newer(uint32_t c, char class)
{
    for (size_t i = 0; i < sizeof NEWER / sizeof *NEWER && NEWER[i].first <= c; i++)
        if (c <= NEWER[i].last) return NEWER[i].class == class;
    return false;
}

bool char_is_number(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO) || (k == UTF8PROC_CATEGORY_CN && is_newer(c, 'N'));
}

bool char_is_punctuation(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return (k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO) || (k == UTF8PROC_CATEGORY_CN && is_newer(c, 'P'));
}

bool char_is_symbol(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return (k >= UTF8PROC_CATEGORY_SM && k <= UTF8PROC_CATEGORY_SO) || (k == UTF8PROC_CATEGORY_CN && is_newer(c, 'S'));
}

/* ---- Lower-casing ------------------------------------------------------------------------------------------------
 * str.lower() is the full mapping of the Unicode Standard, section 3.13: the one-to-one mapping, the one unconditional
 * entry of SpecialCasing.txt that a lower-case mapping has (U+0130), and the rule Final_Sigma. */

/* Case_Ignorable (definition D136): these marks, formats and modifiers, and the characters inside words (the classes
 * MidLetter, MidNumLet and Single_Quote of WordBreakProperty.txt). */
static bool is_case_ignorable(uint32_t c)
{
    static const uint32_t inside_words[] = {0x27,   0x2E,   0x3A,   0xB7,   0x387,  0x55F,  0x5F4,  0x2018, 0x2019,
                                            0x2024, 0x2027, 0xFE13, 0xFE52, 0xFE55, 0xFF07, 0xFF0E, 0xFF1A};
    utf8proc_category_t k = category(c);
    for (size_t i = 0; i < sizeof inside_words / sizeof *inside_words; i++)
        if (c == inside_words[i]) return true;
    return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF ||
           k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_SK;
}

/* Cased (definition D135): cased letters, and Other_Lowercase and Other_Uppercase of PropList.txt, of which only these
 * are not case-ignorable as well: ordinal indicators, Roman numerals, circled, squared and parenthesised letters. */
static bool is_cased(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LT) || c == 0xAA || c == 0xBA ||
           (c >= 0x2160 && c <= 0x217F) || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
           (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

/* Final_Sigma (table 3-17): a cased letter before it and none after it, looking past case-ignorable characters.
 * Both walks end at the next sigma at the latest, so that a whole text costs linear time. */
static bool is_final_sigma(const Symbols *text, size_t at)
{
    size_t before = at, after = at + 1;
    while (before > 0 && is_case_ignorable(text->items[before - 1])) before--;
    if (before == 0 || !is_cased(text->items[before - 1])) return false;
    while (after < text->count && is_case_ignorable(text->items[after])) after++;
    return after == text->count || !is_cased(text->items[after]);
}

void text_append_lower(Symbols *text, const Symbols *from)
{
    for (size_t i = 0; i < from->count; i++) {
        uint32_t c = from->items[i];
        if (c == CAPITAL_SIGMA) {
            symbols_push(text, is_final_sigma(from, i) ? FINAL_SIGMA : SMALL_SIGMA);
        } else if (c == CAPITAL_I_WITH_DOT) {
            symbols_push(text, 'i');
            symbols_push(text, DOT_ABOVE);
        } else {
            symbols_push(text, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
        }
    }
}

/* ---- Rewriting a text --------------------------------------------------------------------------------------------
 * The reference programs rewrite a text with one regular expression after another. Here every pass reads `text` and
 * writes `next`, which then takes its place. All go from left to right and look on behind the end of a match: what a
 * match has consumed, a later match of the same pass no longer sees. */
void draft_turn(Draft *draft)
{
    Symbols old = draft->text;
    draft->text = draft->next;
    draft->next = old;
    draft->next.count = 0;
}

void draft_free(Draft *draft)
{
    symbols_free(&draft->text);
    symbols_free(&draft->next);
}

void draft_lower(Draft *draft)
{
    text_append_lower(&draft->next, &draft->text);
    draft_turn(draft);
}

bool text_starts_with(const uint32_t *text, size_t count, const char *ascii)
{
    size_t i = 0;
    while (ascii[i] && i < count && text[i] == (unsigned char)ascii[i]) i++;
    return ascii[i] == '\0';
}

/* text.replace(what, with), both ASCII. */
void draft_replace(Draft *draft, const char *what, const char *with)
{
    const Symbols *text = &draft->text;
    for (size_t i = 0; i < text->count;) {
        if (text_starts_with(text->items + i, text->count - i, what)) {
            for (const char *w = with; *w; w++) symbols_push(&draft->next, (unsigned char)*w);
            i += strlen(what);
        } else {
            symbols_push(&draft->next, text->items[i++]);
        }
    }
    draft_turn(draft);
}

/* (X) becomes " \1 ". */
void draft_isolate(Draft *draft, CharTest *is_x)
{
    for (size_t i = 0; i < draft->text.count; i++) {
        uint32_t c = draft->text.items[i];
        bool found = is_x(c);
        if (found) symbols_push(&draft->next, ' ');
        symbols_push(&draft->next, c);
        if (found) symbols_push(&draft->next, ' ');
    }
    draft_turn(draft);
}

/* (X)(Y) becomes "\1 \2 " (SPACE_AFTER) or " \1 \2" (SPACE_BEFORE). */
void draft_part(Draft *draft, CharTest *is_x, CharTest *is_y, OuterSpace space)
{
    const Symbols *text = &draft->text;
    for (size_t i = 0; i < text->count;) {
        if (i + 1 < text->count && is_x(text->items[i]) && is_y(text->items[i + 1])) {
            if (space == SPACE_BEFORE) symbols_push(&draft->next, ' ');
            symbols_push(&draft->next, text->items[i]);
            symbols_push(&draft->next, ' ');
            symbols_push(&draft->next, text->items[i + 1]);
            if (space == SPACE_AFTER) symbols_push(&draft->next, ' ');
            i += 2;
        } else {
            symbols_push(&draft->next, text->items[i++]);
        }
    }
    draft_turn(draft);
}
