/* metrics.c: see metrics.h.
 *
 * Each metric is a way to turn a text into tokens and a way to compare two lists of tokens (the table METRICS). Tokens
 * and n-grams are numbers: a Numbering gives equal ones equal numbers, so that comparing never looks at letters. */
#include "metrics.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "unicode_text.h"

enum { MAX_ORDER = 4 }; /* BLEU counts n-grams of 1 to 4 tokens */

/* ---- Numbers for tokens and n-grams ------------------------------------------------------------------------------
 * A trie kept in a hash table. The empty sequence has number 0; every longer one is a known sequence and one symbol
 * more, and gets the next number at its first sight. Symbols are code points (tokens) or token numbers (n-grams). */
typedef struct {
    uint32_t prefix, symbol, number; /* number 0: a free place */
} Extension;

typedef struct {
    Extension *table; /* open addressing, at most half full */
    size_t capacity;  /* a power of two */
    uint32_t count;   /* the numbers 1..count are given */
    bool failed;      /* memory ran out; sticks, as in Symbols */
} Numbering;

static void numbering_free(Numbering *numbering)
{
    free(numbering->table);
    *numbering = (Numbering){0};
}

/* The place of (prefix, symbol), or the free one where it belongs. The multipliers are those of splitmix64 (Steele et
 * al. 2014), which spreads neighbouring keys. */
static Extension *numbering_place(Extension *table, size_t capacity, uint32_t prefix, uint32_t symbol)
{
    uint64_t hash = ((uint64_t)prefix << 32 | symbol) + 0x9E3779B97F4A7C15u;
    hash = (hash ^ hash >> 30) * 0xBF58476D1CE4E5B9u;
    hash = (hash ^ hash >> 27) * 0x94D049BB133111EBu;
    size_t i = (size_t)(hash ^ hash >> 31) & (capacity - 1);
    while (table[i].number && (table[i].prefix != prefix || table[i].symbol != symbol)) i = (i + 1) & (capacity - 1);
    return &table[i];
}

static void numbering_grow(Numbering *numbering)
{
    size_t capacity = numbering->capacity ? 2 * numbering->capacity : 256;
    Extension *table = numbering->count < UINT32_MAX / 2 ? calloc(capacity, sizeof *table) : NULL;
    if (!table) {
        numbering->failed = true;
        return;
    }
    for (size_t i = 0; i < numbering->capacity; i++) {
        const Extension *old = &numbering->table[i];
        if (old->number) *numbering_place(table, capacity, old->prefix, old->symbol) = *old;
    }
    free(numbering->table);
    numbering->table = table;
    numbering->capacity = capacity;
}

/* The number of the sequence `prefix` followed by `symbol`. */
static uint32_t numbering_extend(Numbering *numbering, uint32_t prefix, uint32_t symbol)
{
    if (2 * ((size_t)numbering->count + 1) > numbering->capacity) numbering_grow(numbering);
    if (numbering->failed) return 0;
    Extension *place = numbering_place(numbering->table, numbering->capacity, prefix, symbol);
    if (!place->number) *place = (Extension){prefix, symbol, ++numbering->count};
    return place->number;
}

/* ---- Tokens ------------------------------------------------------------------------------------------------------
 * A Tokenize empties the draft of one text into tokens. */
typedef void Tokenize(Draft *draft, Numbering *words, Symbols *tokens);

/* \b(a|an|the)\b becomes a space. A boundary on both sides makes it a whole run of word characters. */
static void remove_articles(Draft *draft)
{
    const Symbols *text = &draft->text;
    for (size_t i = 0; i < text->count;) {
        const uint32_t *word = text->items + i;
        size_t length = 0;
        while (i + length < text->count && char_is_word(word[length])) length++;
        bool article = (length == 1 && text_starts_with(word, length, "a")) ||
                       (length == 2 && text_starts_with(word, length, "an")) ||
                       (length == 3 && text_starts_with(word, length, "the"));
        if (article) symbols_push(&draft->next, ' ');
        if (length == 0) length = 1; /* not a word: copy the one character */
        for (size_t j = 0; !article && j < length; j++) symbols_push(&draft->next, word[j]);
        i += length;
    }
    draft_turn(draft);
}

enum { LINE_END = 0 }; /* what rougeLsum has between lines; no token has the number 0 */

/* text.split(); with mark_lines each "\n" also leaves a LINE_END. */
static void split(const Symbols *text, bool mark_lines, Numbering *words, Symbols *tokens)
{
    uint32_t word = 0;
    for (size_t i = 0; i < text->count; i++) {
        uint32_t c = text->items[i];
        if (!char_is_space(c)) {
            word = numbering_extend(words, word, c);
            continue;
        }
        if (word) symbols_push(tokens, word);
        if (c == '\n' && mark_lines) symbols_push(tokens, LINE_END);
        word = 0;
    }
    if (word) symbols_push(tokens, word);
}

/* Accuracy compares texts, not words: the code points between surrounding white space, which is cut off. */
static void tokenize_trimmed(Draft *draft, Numbering *words, Symbols *tokens)
{
    const Symbols *text = &draft->text;
    size_t begin = 0, end = text->count;
    (void)words;
    while (begin < end && char_is_space(text->items[begin])) begin++;
    while (end > begin && char_is_space(text->items[end - 1])) end--;
    for (size_t i = begin; i < end; i++) symbols_push(tokens, text->items[i]);
}

static bool is_ascii_punctuation(uint32_t c)
{
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

/* T5's qa_utils.normalize_trivia_qa: ASCII punctuation and ‘ ’ ´ become spaces. */
static void tokenize_trivia(Draft *draft, Numbering *words, Symbols *tokens)
{
    draft_lower(draft);
    for (size_t i = 0; i < draft->text.count; i++) {
        uint32_t *c = &draft->text.items[i];
        if (is_ascii_punctuation(*c) || *c == 0x2018 || *c == 0x2019 || *c == 0xB4) *c = ' ';
    }
    remove_articles(draft);
    split(&draft->text, false, words, tokens);
}

/* qa_utils.normalize_squad: ASCII punctuation vanishes, so that "rock-n-roll" is one word. */
static void tokenize_squad(Draft *draft, Numbering *words, Symbols *tokens)
{
    draft_lower(draft);
    for (size_t i = 0; i < draft->text.count; i++)
        if (!is_ascii_punctuation(draft->text.items[i])) symbols_push(&draft->next, draft->text.items[i]);
    draft_turn(draft);
    remove_articles(draft);
    split(&draft->text, false, words, tokens);
}

/* str.rstrip(), with which sacrebleu begins. It matters: white space at the end could part a final "5." */
static void strip_end(Symbols *text)
{
    while (text->count && char_is_space(text->items[text->count - 1])) text->count--;
}

static bool is_not_number(uint32_t c)
{
    return !char_is_number(c);
}

/* sacrebleu's "intl" (mteval-v14 --international-tokenization). */
static void tokenize_intl(Draft *draft, Numbering *words, Symbols *tokens)
{
    strip_end(&draft->text);
    draft_part(draft, is_not_number, char_is_punctuation, SPACE_AFTER);
    draft_part(draft, char_is_punctuation, is_not_number, SPACE_BEFORE);
    draft_isolate(draft, char_is_symbol);
    split(&draft->text, false, words, tokens);
}

static bool is_digit(uint32_t c)
{
    return c >= '0' && c <= '9';
}

static bool is_not_digit(uint32_t c)
{
    return !is_digit(c);
}

static bool is_period_or_comma(uint32_t c)
{
    return c == '.' || c == ',';
}

static bool is_dash(uint32_t c)
{
    return c == '-';
}

static bool is_isolated_by_13a(uint32_t c)
{
    return is_ascii_punctuation(c) && c != '\'' && c != ',' && c != '-' && c != '.';
}

/* sacrebleu's "13a" (mteval-v13a). Entities are replaced one kind after another: "&amp;lt;" ends as "<". */
static void tokenize_13a(Draft *draft, Numbering *words, Symbols *tokens)
{
    strip_end(&draft->text);
    draft_replace(draft, "<skipped>", "");
    draft_replace(draft, "-\n", "");
    draft_replace(draft, "&quot;", "\"");
    draft_replace(draft, "&amp;", "&");
    draft_replace(draft, "&lt;", "<");
    draft_replace(draft, "&gt;", ">");
    /* A space at both ends lets the passes part punctuation there. */
    symbols_push(&draft->next, ' ');
    for (size_t i = 0; i < draft->text.count; i++) symbols_push(&draft->next, draft->text.items[i]);
    symbols_push(&draft->next, ' ');
    draft_turn(draft);
    draft_isolate(draft, is_isolated_by_13a);
    draft_part(draft, is_not_digit, is_period_or_comma, SPACE_AFTER);
    draft_part(draft, is_period_or_comma, is_not_digit, SPACE_BEFORE);
    draft_part(draft, is_digit, is_dash, SPACE_AFTER);
    split(&draft->text, false, words, tokens);
}

/* rouge_score's tokenize: a-z and 0-9 after lower-casing, anything else parts words. */
static void part_for_rouge(Draft *draft)
{
    draft_lower(draft);
    for (size_t i = 0; i < draft->text.count; i++) {
        uint32_t *c = &draft->text.items[i];
        if (!(*c >= 'a' && *c <= 'z') && !is_digit(*c) && *c != '\n') *c = ' ';
    }
}

static void tokenize_rouge(Draft *draft, Numbering *words, Symbols *tokens)
{
    part_for_rouge(draft);
    split(&draft->text, false, words, tokens);
}

/* rougeLsum as T5 calls it: sentences are lines, and a free-standing period ends a line too (t5 metrics.rouge). */
static void tokenize_rouge_lines(Draft *draft, Numbering *words, Symbols *tokens)
{
    draft_replace(draft, " . ", " .\n");
    part_for_rouge(draft);
    split(&draft->text, true, words, tokens);
}

/* The texts of one prediction as tokens, numbered together. */
typedef struct {
    Symbols prediction;
    Symbols *references;
    size_t n_references;
    size_t n_numbers; /* all token numbers are below */
} Pair;

static void pair_close(Pair *pair)
{
    symbols_free(&pair->prediction);
    for (size_t i = 0; pair->references && i < pair->n_references; i++) symbols_free(&pair->references[i]);
    free(pair->references);
}

static void tokenize_text(Tokenize *tokenize, const char *text, Numbering *words, Symbols *tokens)
{
    Draft draft = {0};
    text_append_utf8(&draft.text, text);
    tokenize(&draft, words, tokens);
    if (draft.text.failed || draft.next.failed) tokens->failed = true;
    draft_free(&draft);
}

/* 0, or -1 when there is no memory; then too the pair must be closed. */
static int pair_open(Pair *pair, Tokenize *tokenize, const char *prediction, const References *references)
{
    Numbering words = {0};
    *pair = (Pair){.n_references = references->count};
    pair->references = calloc(references->count ? references->count : 1, sizeof *pair->references);
    if (!pair->references) return -1;
    tokenize_text(tokenize, prediction, &words, &pair->prediction);
    bool failed = pair->prediction.failed;
    for (size_t i = 0; i < references->count; i++) {
        tokenize_text(tokenize, references->texts[i], &words, &pair->references[i]);
        failed |= pair->references[i].failed;
    }
    failed |= words.failed;
    pair->n_numbers = (size_t)words.count + 1;
    numbering_free(&words);
    return failed ? -1 : 0;
}

/* ---- N-gram matches ------------------------------------------------------------------------------------------- */

/* The numbers of all n-grams of a text, in order and with repetition. */
static void list_ngrams(const Symbols *tokens, size_t order, Numbering *ngrams, Symbols *list)
{
    for (size_t i = 0; i + order <= tokens->count; i++) {
        uint32_t number = 0;
        for (size_t j = 0; j < order; j++) number = numbering_extend(ngrams, number, tokens->items[i + j]);
        symbols_push(list, number);
    }
}

/* most[g] = max over texts of the count of g in it; `count` is all zero before and after. */
static void raise_to_counts(const uint32_t *ngrams, size_t n, uint32_t *count, uint32_t *most)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t g = ngrams[i];
        if (++count[g] > most[g]) most[g] = count[g];
    }
    for (size_t i = 0; i < n; i++) count[ngrams[i]] = 0;
}

/* Clipped matches: the sum over the distinct n-grams g of min(count in the prediction, max over references of the
 * count). Every occurrence in the prediction uses up one of what the references allow. -1: no memory. */
static int count_matches(const Symbols *prediction, const Symbols *references, size_t n_references, size_t order,
                         size_t *matches)
{
    Numbering ngrams = {0};
    Symbols list = {0};
    uint32_t *allowed = NULL, *count = NULL;
    int result = -1;
    size_t n_candidates;

    list_ngrams(prediction, order, &ngrams, &list);
    n_candidates = list.count;
    for (size_t i = 0; i < n_references; i++) list_ngrams(&references[i], order, &ngrams, &list);
    allowed = calloc((size_t)ngrams.count + 1, sizeof *allowed);
    count = calloc((size_t)ngrams.count + 1, sizeof *count);
    if (!list.failed && !ngrams.failed && allowed && count) {
        size_t begin = n_candidates;
        for (size_t i = 0; i < n_references; i++) {
            size_t n = references[i].count < order ? 0 : references[i].count - order + 1;
            if (n) raise_to_counts(list.items + begin, n, count, allowed);
            begin += n;
        }
        *matches = 0;
        for (size_t i = 0; i < n_candidates; i++) {
            uint32_t *left = &allowed[list.items[i]];
            *matches += *left > 0;
            *left -= *left > 0;
        }
        result = 0;
    }
    free(allowed);
    free(count);
    symbols_free(&list);
    numbering_free(&ngrams);
    return result;
}

/* ---- Scores of a prediction against one reference ---------------------------------------------------------------- */

typedef struct {
    double precision, recall, fmeasure; /* 0..1 */
} Overlap;

/* A Compare fills the overlap; -1: no memory. n_numbers: all token numbers are below. */
typedef int Compare(const Symbols *prediction, const Symbols *reference, size_t n_numbers, Overlap *overlap);

/* P = hits / |prediction|, R = hits / |reference|, F = 2PR / (P + R), each 0 when nothing is hit. */
static Overlap overlap_of(size_t hits, size_t n_prediction, size_t n_reference)
{
    Overlap overlap = {0};
    if (hits == 0) return overlap;
    overlap.precision = (double)hits / (double)n_prediction;
    overlap.recall = (double)hits / (double)n_reference;
    overlap.fmeasure = 2 * overlap.precision * overlap.recall / (overlap.precision + overlap.recall);
    return overlap;
}

static int compare_exact(const Symbols *prediction, const Symbols *reference, size_t n_numbers, Overlap *overlap)
{
    size_t i = 0, n = prediction->count;
    (void)n_numbers;
    while (i < n && i < reference->count && prediction->items[i] == reference->items[i]) i++;
    double equal = i == n && i == reference->count;
    *overlap = (Overlap){equal, equal, equal};
    return 0;
}

static int compare_ngrams(const Symbols *prediction, const Symbols *reference, size_t order, Overlap *overlap)
{
    size_t hits, lost = order - 1; /* n tokens have n - lost n-grams */
    if (count_matches(prediction, reference, 1, order, &hits) < 0) return -1;
    *overlap = overlap_of(hits, prediction->count - lost, reference->count - lost);
    return 0;
}

/* The F1 of question answering and ROUGE-1 are one formula: the overlap of two bags of tokens. */
static int compare_unigrams(const Symbols *prediction, const Symbols *reference, size_t n_numbers, Overlap *overlap)
{
    (void)n_numbers;
    return compare_ngrams(prediction, reference, 1, overlap);
}

static int compare_bigrams(const Symbols *prediction, const Symbols *reference, size_t n_numbers, Overlap *overlap)
{
    (void)n_numbers;
    return compare_ngrams(prediction, reference, 2, overlap);
}

/* ---- Longest common subsequence ----------------------------------------------------------------------------------
 * t[i][j], the length of the LCS of the first i tokens of a and the first j of b:
 *   t[i][j] = t[i-1][j-1] + 1 when a[i] = b[j], otherwise max(t[i][j-1], t[i-1][j]).
 * One row is kept (`row`, n_b + 1 zeros). Reading an LCS back only asks whether t[i][j-1] > t[i-1][j] where the tokens
 * differ: one bit of `left`, if given, n_a rows of (n_b + 7) / 8 zero bytes. Long texts would not fit otherwise. */
static uint32_t lcs_length(const uint32_t *a, size_t n_a, const uint32_t *b, size_t n_b, uint32_t *row,
                           unsigned char *left)
{
    size_t stride = (n_b + 7) / 8;
    for (size_t i = 0; i < n_a; i++) {
        uint32_t diagonal = 0; /* t[i-1][j-1] */
        for (size_t j = 0; j < n_b; j++) {
            uint32_t above = row[j + 1];
            if (a[i] == b[j]) {
                row[j + 1] = diagonal + 1;
            } else if (row[j] > above) {
                row[j + 1] = row[j];
                if (left) left[i * stride + j / 8] |= (unsigned char)(1u << j % 8);
            }
            diagonal = above;
        }
    }
    return row[n_b];
}

static int compare_lcs(const Symbols *prediction, const Symbols *reference, size_t n_numbers, Overlap *overlap)
{
    uint32_t *row = calloc(prediction->count + 1, sizeof *row);
    (void)n_numbers;
    if (!row) return -1;
    uint32_t length = lcs_length(reference->items, reference->count, prediction->items, prediction->count, row, NULL);
    free(row);
    *overlap = overlap_of(length, prediction->count, reference->count);
    return 0;
}

/* Marks the tokens of a that are in its LCS with b. Ties matter, as other LCSs have other positions: rouge_score reads
 * back from the end, and where tokens differ goes left only if that is longer. -1: no memory. */
static int mark_lcs(const uint32_t *a, size_t n_a, const uint32_t *b, size_t n_b, unsigned char *marks)
{
    size_t stride = (n_b + 7) / 8, i = n_a, j = n_b;
    if (n_a == 0 || n_b == 0) return 0;
    uint32_t *row = calloc(n_b + 1, sizeof *row);
    unsigned char *left = calloc(n_a, stride);
    if (!row || !left) {
        free(row);
        free(left);
        return -1;
    }
    lcs_length(a, n_a, b, n_b, row, left);
    while (i > 0 && j > 0) {
        if (a[i - 1] == b[j - 1]) {
            marks[--i] = 1;
            j--;
        } else if (left[(i - 1) * stride + (j - 1) / 8] >> (j - 1) % 8 & 1) {
            j--;
        } else {
            i--;
        }
    }
    free(row);
    free(left);
    return 0;
}

typedef struct {
    size_t begin, end; /* tokens begin..end-1 of a text */
} Line;

/* The line that begins at `begin`; the next one begins behind its LINE_END, at end + 1. */
static Line line_at(const Symbols *text, size_t begin)
{
    Line line = {begin, begin};
    while (line.end < text->count && text->items[line.end] != LINE_END) line.end++;
    return line;
}

/* Adds the tokens of a text to the counts in bag, if given, and returns how many they are, line ends aside. */
static size_t count_tokens(const Symbols *text, uint32_t *bag)
{
    size_t total = 0;
    for (size_t i = 0; i < text->count; i++) {
        if (text->items[i] == LINE_END) continue;
        if (bag) bag[text->items[i]]++;
        total++;
    }
    return total;
}

/* The hits of rougeLsum: for each line of the reference the union of its LCSs with every line of the prediction; a
 * token of it is a hit while the prediction has one of that token `left`. (On the reference's side none can run out,
 * since a position is hit once at most.) `marks` has room for the reference. -1: no memory. */
static int count_union_hits(const Symbols *prediction, const Symbols *reference, uint32_t *left, unsigned char *marks,
                            size_t *hits)
{
    *hits = 0;
    for (Line ours = {0}; ours.end < reference->count; ours.end++) {
        ours = line_at(reference, ours.end);
        const uint32_t *tokens = reference->items + ours.begin;
        size_t n_tokens = ours.end - ours.begin;
        if (n_tokens == 0) continue;
        memset(marks, 0, n_tokens);
        for (Line theirs = {0}; theirs.end < prediction->count; theirs.end++) {
            theirs = line_at(prediction, theirs.end);
            if (mark_lcs(tokens, n_tokens, prediction->items + theirs.begin, theirs.end - theirs.begin, marks) < 0)
                return -1;
        }
        for (size_t i = 0; i < n_tokens; i++) {
            if (!marks[i] || left[tokens[i]] == 0) continue;
            left[tokens[i]]--;
            ++*hits;
        }
    }
    return 0;
}

static int compare_lines(const Symbols *prediction, const Symbols *reference, size_t n_numbers, Overlap *overlap)
{
    uint32_t *left = calloc(n_numbers, sizeof *left);
    unsigned char *marks = malloc(reference->count + 1);
    int result = -1;
    size_t hits;
    if (left && marks) {
        size_t n_prediction = count_tokens(prediction, left);
        result = count_union_hits(prediction, reference, left, marks, &hits);
        if (result == 0) *overlap = overlap_of(hits, n_prediction, count_tokens(reference, NULL));
    }
    free(left);
    free(marks);
    return result;
}

/* ---- The metrics ------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    Tokenize *tokenize;
    Compare *compare; /* NULL: BLEU, which has no score for one reference */
} METRICS[METRIC_COUNT] = {
    [METRIC_ACCURACY] = {"accuracy", tokenize_trimmed, compare_exact},
    [METRIC_TRIVIA_EM] = {"trivia-em", tokenize_trivia, compare_exact},
    [METRIC_TRIVIA_F1] = {"trivia-f1", tokenize_trivia, compare_unigrams},
    [METRIC_SQUAD_EM] = {"squad-em", tokenize_squad, compare_exact},
    [METRIC_SQUAD_F1] = {"squad-f1", tokenize_squad, compare_unigrams},
    [METRIC_BLEU] = {"bleu", tokenize_intl, NULL},
    [METRIC_BLEU_13A] = {"bleu-13a", tokenize_13a, NULL},
    [METRIC_ROUGE1] = {"rouge1", tokenize_rouge, compare_unigrams},
    [METRIC_ROUGE2] = {"rouge2", tokenize_rouge, compare_bigrams},
    [METRIC_ROUGEL] = {"rougeL", tokenize_rouge, compare_lcs},
    [METRIC_ROUGELSUM] = {"rougeLsum", tokenize_rouge_lines, compare_lines},
};

const char *metric_name(Metric metric)
{
    return METRICS[metric].name;
}

int metric_by_name(Metric *metric, const char *name)
{
    for (int i = 0; i < METRIC_COUNT; i++) {
        if (strcmp(METRICS[i].name, name) == 0) {
            *metric = (Metric)i;
            return 0;
        }
    }
    return -1;
}

/* The best overlap over the references, the first of equally good ones. -1: no memory. */
static int best_overlap(Compare *compare, const Pair *pair, Overlap *best)
{
    *best = (Overlap){0};
    for (size_t i = 0; i < pair->n_references; i++) {
        Overlap overlap;
        if (compare(&pair->prediction, &pair->references[i], pair->n_numbers, &overlap) < 0) return -1;
        if (i == 0 || overlap.fmeasure > best->fmeasure) *best = overlap;
    }
    return 0;
}

/* What corpus BLEU is made of (Papineni et al. 2002). */
typedef struct {
    size_t matches[MAX_ORDER], totals[MAX_ORDER];
    size_t sys_len, ref_len;
} BleuCounts;

/* Of several references BLEU counts the nearest length, the shorter one of two equally near. */
static size_t nearest_length(const Pair *pair)
{
    size_t length = pair->prediction.count, nearest = 0, smallest = SIZE_MAX;
    for (size_t i = 0; i < pair->n_references; i++) {
        size_t n = pair->references[i].count, distance = n > length ? n - length : length - n;
        if (distance < smallest || (distance == smallest && n < nearest)) {
            smallest = distance;
            nearest = n;
        }
    }
    return nearest;
}

static int bleu_add(BleuCounts *counts, const Pair *pair)
{
    size_t length = pair->prediction.count, matches;
    counts->sys_len += length;
    counts->ref_len += nearest_length(pair);
    for (size_t n = 1; n <= MAX_ORDER && n <= length; n++) {
        if (count_matches(&pair->prediction, pair->references, pair->n_references, n, &matches) < 0) return -1;
        counts->matches[n - 1] += matches;
        counts->totals[n - 1] += length - n + 1;
    }
    return 0;
}

/* BLEU = bp * exp(mean of ln p_n), bp = exp(1 - ref_len / sys_len) for a shorter prediction. The k-th order without a
 * match counts as 1 / 2^k matches (sacrebleu's "exp" smoothing); an order without n-grams makes the score 0, and so
 * does a corpus without any match. */
static void bleu_finish(const BleuCounts *counts, MetricResult *result)
{
    double smooth = 1, log_sum = 0;
    bool any = false;
    result->sys_len = counts->sys_len;
    result->ref_len = counts->ref_len;
    result->bp = 1;
    if (counts->sys_len < counts->ref_len)
        result->bp = counts->sys_len ? exp(1 - (double)counts->ref_len / (double)counts->sys_len) : 0;
    for (int n = 0; n < MAX_ORDER; n++) any |= counts->matches[n] > 0;
    if (!any) return;
    for (int n = 0; n < MAX_ORDER; n++) {
        double matches = (double)counts->matches[n], total = (double)counts->totals[n];
        if (total == 0) return;
        if (matches == 0) smooth *= 2;
        result->precisions[n] = matches > 0 ? 100 * matches / total : 100 / (smooth * total);
        log_sum += log(result->precisions[n]);
    }
    result->score = result->bp * exp(log_sum / MAX_ORDER);
}

int metric_compute(Metric metric, const char *const *predictions, const References *references, size_t n,
                   MetricResult *result, Error *error)
{
    BleuCounts bleu = {0};
    Overlap sum = {0};
    Compare *compare = METRICS[metric].compare;
    *result = (MetricResult){.n = n};
    for (size_t i = 0; i < n; i++) {
        Pair pair;
        Overlap best = {0};
        int failed = pair_open(&pair, METRICS[metric].tokenize, predictions[i], &references[i]);
        if (!failed) failed = compare ? best_overlap(compare, &pair, &best) : bleu_add(&bleu, &pair);
        pair_close(&pair);
        if (failed)
            return error_set(error, EXIT_FAILED, "%s: no memory (prediction %zu of %zu)", metric_name(metric), i + 1,
                             n);
        sum.precision += best.precision;
        sum.recall += best.recall;
        sum.fmeasure += best.fmeasure;
    }
    if (!compare) {
        bleu_finish(&bleu, result);
        return 0;
    }
    result->precision = sum.precision / (double)n * 100;
    result->recall = sum.recall / (double)n * 100;
    result->fmeasure = sum.fmeasure / (double)n * 100;
    result->score = result->fmeasure;
    return 0;
}

/* NAN when there is no memory. */
double metric_one(Metric metric, const char *prediction, const References *references)
{
    MetricResult result;
    Error error;
    return metric_compute(metric, &prediction, references, 1, &result, &error) < 0 ? NAN : result.score;
}
