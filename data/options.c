/* options.c: see options.h. */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "text_buffer.h"

static bool is_choice(const char *choices, const char *value)
{
    size_t length = strlen(value);
    for (const char *at = choices; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL)
        if (strcspn(at, "|") == length && strncmp(at, value, length) == 0) return true;
    return false;
}

int option_check(const Option *option, const char *value, Error *error)
{
    char *end;
    double number;
    if (option->kind == CHOICE && !is_choice(option->argument, value))
        return error_set(error, EXIT_USAGE, "--%s: expected %s, found %s", option->name, option->argument, value);
    if (option->kind != WHOLE && option->kind != REAL) return 0;
    errno = 0;
    number = strtod(value, &end);
    /* strtod also takes blanks in front, hexadecimal numbers, nan and inf */
    if (end == value || *end || !isfinite(number) || isspace((unsigned char)*value) || strpbrk(value, "xXpP") ||
        (option->kind == WHOLE && number != floor(number)))
        return error_set(error, EXIT_USAGE, "--%s: expected a %snumber, found %s", option->name,
                         option->kind == WHOLE ? "whole " : "", value);
    if (number < option->least || number > option->most)
        return error_set(error, EXIT_USAGE, "--%s: expected a number from %g to %g, found %s", option->name,
                         option->least, option->most, value);
    return 0;
}

static bool is_list(const Option *option)
{
    return option->kind == LIST || option->kind == WORDS;
}

static bool is_taken(const Options *o, size_t id)
{
    return (o->table[id].commands & o->which) != 0;
}

static size_t smallest(size_t a, size_t b, size_t c)
{
    size_t ab = a < b ? a : b;
    return ab < c ? ab : c;
}

/* How many single-letter edits turn one name into another (Levenshtein): for "did you mean". */
static size_t edit_distance(const char *a, const char *b)
{
    enum { LONGEST = 40 };
    size_t row[LONGEST + 1], n = strlen(b) < LONGEST ? strlen(b) : LONGEST;
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < n; j++) {
            size_t change = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = smallest(change, row[j] + 1, row[j + 1] + 1);
        }
    }
    return row[n];
}

static int unknown_option(const Options *o, const char *name, Error *error)
{
    enum { TOO_FAR = 4 }; /* edits from which a name is no misspelling any more */
    const char *nearest = NULL;
    size_t best = TOO_FAR;
    for (size_t i = 0; i < o->count; i++) {
        size_t distance = edit_distance(name, o->table[i].name);
        if (is_taken(o, i) && distance < best) best = distance, nearest = o->table[i].name;
    }
    if (nearest)
        return error_set(error, EXIT_USAGE, "--%s: no such option of %s (did you mean --%s?)", name, o->command,
                         nearest);
    return error_set(error, EXIT_USAGE, "--%s: no such option of %s (promot %s --help lists them)", name, o->command,
                     o->command);
}

static int take_value(Options *o, size_t id, const char *value, Error *error)
{
    const char **grown;
    if (option_check(&o->table[id], value, error)) return -1;
    o->text[id] = value;
    o->given[id] = true;
    if (!is_list(&o->table[id])) return 0;
    grown = realloc(o->list[id], (o->n_list[id] + 1) * sizeof *grown);
    if (!grown) return error_set(error, EXIT_FAILED, "--%s: no memory", o->table[id].name);
    grown[o->n_list[id]++] = value;
    o->list[id] = grown;
    return 0;
}

int options_parse(Options *o, int argc, char **argv, Error *error)
{
    for (size_t i = 0; i < o->count; i++) o->text[i] = is_taken(o, i) ? o->table[i].fallback : NULL;
    for (int a = 0; a < argc; a++) {
        const char *word = strcmp(argv[a], "-h") == 0 ? "--help" : argv[a], *equals = strchr(word, '=');
        int length = equals ? (int)(equals - word) : (int)strlen(word);
        size_t id = 0;
        char name[64];
        if (strncmp(word, "--", 2) != 0)
            return error_set(error, EXIT_USAGE, "%s: %s: expected an option", o->command, word);
        snprintf(name, sizeof name, "%.*s", length - 2, word + 2);
        while (id < o->count && !(is_taken(o, id) && strcmp(o->table[id].name, name) == 0)) id++;
        if (id == o->count) return unknown_option(o, name, error);
        if (o->table[id].kind == FLAG && equals) return error_set(error, EXIT_USAGE, "--%s: takes no value", name);
        if (o->table[id].kind != FLAG && !equals && a + 1 == argc)
            return error_set(error, EXIT_USAGE, "--%s: expected a value (%s)", name, o->table[id].argument);
        if (take_value(o, id, o->table[id].kind == FLAG ? "true" : equals ? equals + 1 : argv[++a], error)) return -1;
        while (o->table[id].kind == WORDS && a + 1 < argc && strncmp(argv[a + 1], "--", 2) != 0)
            if (take_value(o, id, argv[++a], error)) return -1;
    }
    return 0;
}

void options_free(Options *o)
{
    for (size_t i = 0; i < o->count; i++) {
        free(o->list[i]);
        o->list[i] = NULL;
        o->n_list[i] = 0;
    }
}

double option_real(const Options *o, size_t id)
{
    return strtod(o->text[id], NULL);
}

size_t option_size(const Options *o, size_t id)
{
    return (size_t)option_real(o, id);
}

bool option_true(const Options *o, size_t id)
{
    return o->text[id] && strcmp(o->text[id], "true") == 0;
}

int option_need(const Options *o, size_t id, Error *error)
{
    if (o->text[id] && *o->text[id]) return 0;
    return error_set(error, EXIT_USAGE, "%s: --%s %s is needed", o->command, o->table[id].name, o->table[id].argument);
}

/* The help begins in this column and stays within this width. */
enum { HELP_COLUMN = 36, HELP_WIDTH = 118 };

/* Words, each behind a space, on as many lines as they take. */
static void put_words(TextBuffer *out, const char *text, size_t *column)
{
    for (size_t n; *text; text += n, text += strspn(text, " ")) {
        n = strcspn(text, " ");
        if (*column + 1 + n > HELP_WIDTH) {
            text_put_format(out, "\n%*s", HELP_COLUMN, "");
            *column = HELP_COLUMN;
        }
        text_put(out, " ");
        text_put_bytes(out, text, n);
        *column += 1 + n;
    }
}

/* "  --name ARGUMENT      help [default]", the help on lines of its own where the argument is long. */
static void put_option(TextBuffer *out, const Option *option)
{
    const char *fallback = option->fallback && strcmp(option->fallback, " ") == 0 ? "a space" : option->fallback;
    char left[128];
    size_t column = HELP_COLUMN;
    snprintf(left, sizeof left, "  --%s%s%s", option->name, option->argument ? " " : "",
             option->argument ? option->argument : "");
    text_put_format(out, "%-*s", HELP_COLUMN, left);
    if (strlen(left) > HELP_COLUMN) text_put_format(out, "\n%*s", HELP_COLUMN, "");
    put_words(out, option->help, &column);
    if (fallback && *fallback) {
        snprintf(left, sizeof left, "[%s]", fallback);
        put_words(out, left, &column);
    }
    text_put(out, "\n");
}

char *options_help(const Options *o)
{
    TextBuffer text = {0};
    for (size_t i = 0; i < o->count; i++)
        if (is_taken(o, i)) put_option(&text, &o->table[i]);
    return text_take(&text);
}

void options_record(const Options *o, bool (*skip)(size_t id), cJSON *into)
{
    for (size_t i = 0; i < o->count; i++) {
        if (!is_taken(o, i) || skip(i)) continue;
        if (is_list(&o->table[i]))
            cJSON_AddItemToObject(into, o->table[i].name, cJSON_CreateStringArray(o->list[i], (int)o->n_list[i]));
        else if (o->text[i])
            cJSON_AddStringToObject(into, o->table[i].name, o->text[i]);
    }
}

static int recall_list(Options *o, size_t id, const cJSON *item, const char *path, Error *error)
{
    size_t n = (size_t)cJSON_GetArraySize(item), k = 0;
    const char **list = malloc((n ? n : 1) * sizeof *list);
    bool same = n == o->n_list[id];
    const cJSON *entry;
    if (!list) return error_set(error, EXIT_FAILED, "%s: no memory", path);
    cJSON_ArrayForEach(entry, item)
    {
        list[k] = cJSON_IsString(entry) ? entry->valuestring : "";
        same = same && strcmp(list[k], o->list[id][k]) == 0;
        k++;
    }
    if (o->given[id] && !same) {
        free(list);
        return error_set(error, EXIT_USAGE, "--%s: differs from %s (a resumed run keeps its settings)",
                         o->table[id].name, path);
    }
    free(o->list[id]);
    o->list[id] = list;
    o->n_list[id] = n;
    return 0;
}

int options_recall(Options *o, bool (*skip)(size_t id), const cJSON *recorded, const char *path, Error *error)
{
    for (size_t i = 0; i < o->count; i++) {
        const Option *option = &o->table[i];
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(recorded, option->name);
        const char *text = cJSON_IsString(item) ? item->valuestring : NULL;
        if (!is_taken(o, i) || skip(i)) continue;
        if (item && (is_list(option) ? !cJSON_IsArray(item) : !text))
            return error_set(error, EXIT_FAILED, "%s: %s is not what a run records", path, option->name);
        if (is_list(option)) {
            if (recall_list(o, i, item, path, error)) return -1;
            continue;
        }
        if (o->given[i] && !(text && strcmp(text, o->text[i]) == 0))
            return error_set(error, EXIT_USAGE,
                             "--%s %s: differs from %s, which has %s (a resumed run keeps its settings)", option->name,
                             o->text[i], path, text ? text : "nothing");
        if (!text && option->fallback)
            return error_set(error, EXIT_FAILED, "%s: %s is missing (expected every setting of the run)", path,
                             option->name);
        if (text && option_check(option, text, error)) return -1;
        o->text[i] = text;
    }
    return 0;
}
