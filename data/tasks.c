/* tasks.c: tasks as text. See tasks.h.
 *
 * A task is a row of one table (or a JSON file of the same fields): a template with {field} places, how the answer is
 * found, the metric, and the text at which an output is cut. A place may name alternatives, {premise|sentence1}: the
 * first one that a row has is taken, so that one task reads a data set in each layout it is distributed in.
 *
 * Data are JSON lines (one object a line) or TSV with a header line; a TSV row is turned into the JSON object it stands
 * for, and everything after that is the same code. Templates and label words: table 7 of the ProMoT paper. */
#include "tasks.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "files.h"

/* ------------------------------------------------------------------------------------------------------ the table */

/* A label as the files store it, and the word that the model says; a NULL word: rows with that label are left out. */
typedef struct {
    const char *stored, *word;
} Label;

/* One task. Its answer is either a label word (labels, label_field) or text (target). All strings are borrowed: from
 * the table below, or from the JSON of an own task. */
typedef struct {
    const char *name, *template;
    const char *target;      /* template of the answer; NULL when the answer is a label word */
    const char *accepted;    /* field with further accepted answers, or NULL */
    const char *label_field; /* where the label is */
    const Label *labels;
    size_t n_labels;
    size_t n_numbered; /* so many of the labels, from the first on, are also known by number */
    Metric metric;
    const char *prefix;      /* where a made-up next example begins: outputs are cut there; NULL: never */
    const char *file_prefix; /* put in front of "train.jsonl" by those who distribute the set, or NULL */
    const char *files[2];    /* [Split]: the names of the split files when they are not the usual ones, or NULL */
} TaskSpec;

/* GLUE made RTE two-way by folding neutral and contradiction into not_entailment; so do we with three-way files. */
static const Label RTE_LABELS[] = {
    {"entailment", "True"}, {"not_entailment", "False"}, {"neutral", "False"}, {"contradiction", "False"}};
static const Label CB_LABELS[] = {{"entailment", "True"}, {"contradiction", "False"}, {"neutral", "Neither"}};
static const Label WIC_LABELS[] = {{"false", "False"}, {"true", "True"}, {"False", "False"}, {"True", "True"}};
/* SNLI rows whose annotators did not agree are stored as "-" (-1 in numbered copies) and belong to no split. */
static const Label SNLI_LABELS[] = {
    {"entailment", "True"}, {"neutral", "Neither"}, {"contradiction", "False"}, {"-", NULL}, {"-1", NULL}};

/* The order of the labels is that of their numbers in the data sets' numbered copies. */
#define LABELS(array, numbered) .labels = (array), .n_labels = sizeof(array) / sizeof *(array), .n_numbered = (numbered)

/* Templates, byte for byte: ProMoT, table 7 (WiC's capital F too). Where SNLI comes as sentence1 and sentence2, other
 * NLI sets have premise and hypothesis. */
static const TaskSpec BUILTIN[] = {
    {.name = "rte",
     .template = "{premise} question: {hypothesis} Is it true or false? answer:",
     .label_field = "label",
     LABELS(RTE_LABELS, 2),
     .metric = METRIC_ACCURACY},
    {.name = "cb",
     .template = "{premise} question: {hypothesis} Is it true or false or neither? answer:",
     .label_field = "label",
     LABELS(CB_LABELS, 3),
     .metric = METRIC_ACCURACY},
    {.name = "wic",
     .template = "{sentence1} {sentence2} question: The word {word} is used in the same way in the two sentences. "
                 "Is it true or False? answer:",
     .label_field = "label",
     LABELS(WIC_LABELS, 2),
     .metric = METRIC_ACCURACY},
    {.name = "snli",
     .template = "{premise|sentence1} question: {hypothesis|sentence2} Is it true or false or neither? answer:",
     .label_field = "gold_label|label",
     LABELS(SNLI_LABELS, 3),
     .metric = METRIC_ACCURACY,
     .file_prefix = "snli_1.0_"},
    {.name = "xsum",
     .template = "Article: {document} One sentence summary:",
     .target = "{summary}",
     .metric = METRIC_ROUGE2,
     .prefix = "Article:"},
    {.name = "wikilingua", /* the GEM benchmark's JSON lines */
     .template = "Article: {source} One sentence summary:",
     .target = "{target}",
     .metric = METRIC_ROUGE2,
     .prefix = "Article:"},
};
enum { BUILTINS = sizeof BUILTIN / sizeof *BUILTIN };

/* The paper's other tasks: names that mean something, but have no reader in this version. */
static const char *const WITHOUT_READER[] = {"openbookqa",  "triviaqa",    "webquestions",
                                             "wmt14_en_fr", "wmt16_en_de", "wmt16_en_ro"};

struct Task {
    TaskSpec spec;
    const char **words; /* the distinct label words */
    size_t n_words;
    Label *own_labels; /* spec.labels of an own task; NULL for a built-in one */
    cJSON *json;       /* the file of an own task: the strings of spec point into it */
};

/* ----------------------------------------------------------------------------------------------------------- text */

/* A growing string. After a failed allocation it takes nothing more, and text_take says so once. */
typedef struct {
    char *data;
    size_t length, capacity;
    bool failed;
} Text;

/* Appends bytes; the capacity at least doubles, so that building a text takes linear time. */
static void text_append(Text *text, const char *data, size_t length)
{
    if (text->failed) return;
    if (length >= text->capacity - text->length) {
        size_t capacity = (text->length + length + 1) * 2;
        char *grown = realloc(text->data, capacity);
        if (!grown) {
            text->failed = true;
            return;
        }
        text->data = grown;
        text->capacity = capacity;
    }
    memcpy(text->data + text->length, data, length);
    text->length += length;
    text->data[text->length] = '\0';
}

/* The string, now the caller's; NULL when memory ran out. */
static char *text_take(Text *text)
{
    text_append(text, "", 0);
    if (text->failed) {
        free(text->data);
        return NULL;
    }
    return text->data;
}

/* A copy as a C string, to be freed; NULL: no memory. */
static char *copy_of(const char *data, size_t length)
{
    Text text = {0};
    text_append(&text, data, length);
    return text_take(&text);
}

/* Returns -1, like error_set. */
static int out_of_memory(Error *error, const char *file)
{
    return error_set(error, EXIT_FAILED, "%s: out of memory", file);
}

/* An error may quote the file's own words, which may hold a line break; it must stay one line. Returns -1. */
static int on_one_line(Error *error)
{
    for (char *p = error->text; *p; p++) {
        if ((unsigned char)*p < 0x20) *p = ' ';
    }
    return -1;
}

/* ------------------------------------------------------------------------------------------------------- templates */

/* A piece of a template: words as they are, or the name (or names, with |) inside a place. */
typedef struct {
    const char *text;
    size_t length;
    bool is_place;
} Piece;

/* Takes the next piece: 1, 0 at the end, -1 where a brace has no partner. {{ and }} stand for { and }. */
static int next_piece(const char **at, Piece *piece)
{
    const char *p = *at;
    if (*p == '\0') return 0;
    if ((*p == '{' || *p == '}') && p[1] == *p) {
        *piece = (Piece){p, 1, false};
        *at = p + 2;
        return 1;
    }
    if (*p == '}') return -1;
    if (*p == '{') {
        const size_t length = strcspn(p + 1, "{}");
        if (p[1 + length] != '}' || length == 0) return -1;
        *piece = (Piece){p + 1, length, true};
        *at = p + length + 2;
        return 1;
    }
    *piece = (Piece){p, strcspn(p, "{}"), false};
    *at = p + piece->length;
    return 1;
}

/* The number of places in a template, or -1 when it is malformed. */
static int count_places(const char *template)
{
    Piece piece;
    int places = 0, status;
    while ((status = next_piece(&template, &piece)) > 0) places += piece.is_place;
    return status < 0 ? -1 : places;
}

/* ------------------------------------------------------------------------------------------------------------ rows */

/* A row of a data file and where it came from. */
typedef struct {
    const cJSON *fields;
    const char *file;
    size_t line;
} Row;

/* What a JSON value is, in the words of our errors. */
static const char *kind_of(const cJSON *value)
{
    if (cJSON_IsString(value)) return "a string";
    if (cJSON_IsNumber(value)) return "a number";
    if (cJSON_IsBool(value)) return "true or false";
    if (cJSON_IsArray(value)) return "a list";
    if (cJSON_IsObject(value)) return "an object";
    return "null";
}

/* The first field that is there of "name|name|…" (length bytes), or NULL. Names are compared with their case: JSON's
 * are. */
static const cJSON *find_field(const Row *row, const char *names, size_t length)
{
    while (length > 0) {
        const char *bar = memchr(names, '|', length);
        const size_t one = bar ? (size_t)(bar - names) : length;
        const cJSON *field;
        cJSON_ArrayForEach(field, row->fields)
        {
            if (strlen(field->string) == one && memcmp(field->string, names, one) == 0) return field;
        }
        names += one + (bar != NULL);
        length -= one + (bar != NULL);
    }
    return NULL;
}

/* The two ways in which a row does not fit its task. */
static int no_field(const Row *row, const char *names, size_t length, Error *error)
{
    return error_set(error, EXIT_USAGE, "%s:%zu: no field %.*s", row->file, row->line, (int)length, names);
}

static int wrong_kind(const Row *row, const cJSON *field, const char *expected, Error *error)
{
    return error_set(error, EXIT_USAGE, "%s:%zu: wrong type in field %.100s (expected %s, found %s)", row->file,
                     row->line, field->string, expected, kind_of(field));
}

/* Fills a template from a row; *out is to be freed. */
static int fill_template(const char *template, const Row *row, char **out, Error *error)
{
    Text text = {0};
    Piece piece;
    while (next_piece(&template, &piece) > 0) {
        if (piece.is_place) {
            const cJSON *field = find_field(row, piece.text, piece.length);
            if (!field || !cJSON_IsString(field)) {
                free(text.data);
                return field ? wrong_kind(row, field, "a string", error)
                             : no_field(row, piece.text, piece.length, error);
            }
            text_append(&text, field->valuestring, strlen(field->valuestring));
        } else {
            text_append(&text, piece.text, piece.length);
        }
    }
    *out = text_take(&text);
    return *out ? 0 : out_of_memory(error, row->file);
}

/* ---------------------------------------------------------------------------------------------- from row to example */

static void example_free(Example *example)
{
    for (size_t i = 0; i < example->n_targets; i++) free(example->targets[i]);
    free(example->targets);
    free(example->input);
    free(example->id);
}

void examples_free(Examples *examples)
{
    for (size_t i = 0; i < examples->count; i++) example_free(&examples->items[i]);
    free(examples->items);
    *examples = (Examples){0};
}

/* Adds an accepted answer, which it then owns (NULL: no memory); one that is there already is dropped. */
static int add_target(Example *example, char *target, const Row *row, Error *error)
{
    char **grown;
    if (!target) return out_of_memory(error, row->file);
    for (size_t i = 0; i < example->n_targets; i++) {
        if (strcmp(example->targets[i], target) == 0) {
            free(target);
            return 0;
        }
    }
    grown = realloc(example->targets, (example->n_targets + 1) * sizeof *grown);
    if (!grown) {
        free(target);
        return out_of_memory(error, row->file);
    }
    example->targets = grown;
    example->targets[example->n_targets++] = target;
    return 0;
}

/* Adds what a field holds: one answer, or a list of them. */
static int add_targets_of(Example *example, const cJSON *field, const Row *row, Error *error)
{
    const cJSON *item;
    if (cJSON_IsString(field))
        return add_target(example, copy_of(field->valuestring, strlen(field->valuestring)), row, error);
    if (!cJSON_IsArray(field)) return wrong_kind(row, field, "a string or a list of strings", error);
    cJSON_ArrayForEach(item, field)
    {
        if (!cJSON_IsString(item))
            return error_set(error, EXIT_USAGE, "%s:%zu: wrong type in the list %.100s (expected strings, found %s)",
                             row->file, row->line, field->string, kind_of(item));
        if (add_target(example, copy_of(item->valuestring, strlen(item->valuestring)), row, error) != 0) return -1;
    }
    return 0;
}

/* A label as text: words as they are, true and false, numbers in digits (in buffer). NULL: error. */
static const char *label_text(const Row *row, const cJSON *field, char buffer[32], Error *error)
{
    if (cJSON_IsString(field)) return field->valuestring;
    if (cJSON_IsBool(field)) return cJSON_IsTrue(field) ? "true" : "false";
    if (!cJSON_IsNumber(field)) {
        wrong_kind(row, field, "a label", error);
        return NULL;
    }
    snprintf(buffer, 32, "%.15g", field->valuedouble);
    return buffer;
}

/* A label by what the files call it, else by its number. */
static const Label *find_label(const TaskSpec *spec, const char *text)
{
    for (size_t i = 0; i < spec->n_labels; i++) {
        if (strcmp(spec->labels[i].stored, text) == 0) return &spec->labels[i];
    }
    if (text[0] >= '0' && text[0] <= '9' && text[1] == '\0' && (size_t)(text[0] - '0') < spec->n_numbered)
        return &spec->labels[text[0] - '0'];
    return NULL;
}

/* "entailment, neutral, contradiction" into text, for an error. */
static void list_labels(const TaskSpec *spec, char *text, size_t size)
{
    size_t at = 0;
    text[0] = '\0';
    for (size_t i = 0; i < spec->n_labels && at < size; i++)
        at += (size_t)snprintf(text + at, size - at, "%s%s", i ? ", " : "", spec->labels[i].stored);
}

/* The answer of a class: 0, or 1 when the row is to be left out. */
static int read_label(const TaskSpec *spec, const Row *row, Example *example, Error *error)
{
    char buffer[32], expected[300];
    const cJSON *field = find_field(row, spec->label_field, strlen(spec->label_field));
    const char *text;
    const Label *label;
    if (!field) /* the files of test splits hide it */
        return error_set(error, EXIT_USAGE,
                         "%s:%zu: no field %s (a row without a label cannot be trained on or scored)", row->file,
                         row->line, spec->label_field);
    text = label_text(row, field, buffer, error);
    if (!text) return -1;
    label = find_label(spec, text);
    if (!label) {
        list_labels(spec, expected, sizeof expected);
        return error_set(error, EXIT_USAGE, "%s:%zu: unknown label (expected %s, found \"%.100s\")", row->file,
                         row->line, expected, text);
    }
    if (!label->word) return 1;
    return add_target(example, copy_of(label->word, strlen(label->word)), row, error);
}

/* The answers of a task that writes text: the target is trained on, all are accepted. */
static int read_targets(const TaskSpec *spec, const Row *row, Example *example, Error *error)
{
    const char *at = spec->target;
    char *target = NULL;
    bool empty = false;
    Piece piece;
    /* "{answers}" alone may stand for a list; inside a longer text a list has no meaning, and fill_template refuses it.
     */
    const bool only_a_place = next_piece(&at, &piece) > 0 && piece.is_place && *at == '\0';
    const cJSON *field = only_a_place ? find_field(row, piece.text, piece.length) : NULL;
    if (field) {
        if (add_targets_of(example, field, row, error) != 0) return -1;
    } else {
        if (fill_template(spec->target, row, &target, error) != 0) return -1;
        if (add_target(example, target, row, error) != 0) return -1;
    }
    if (spec->accepted) {
        field = find_field(row, spec->accepted, strlen(spec->accepted));
        if (!field) return no_field(row, spec->accepted, strlen(spec->accepted), error);
        if (add_targets_of(example, field, row, error) != 0) return -1;
    }
    /* An empty answer would teach to say nothing, and would accept that. */
    for (size_t i = 0; i < example->n_targets; i++) empty |= example->targets[i][0] == '\0';
    if (example->n_targets == 0 || empty)
        return error_set(error, EXIT_USAGE, "%s:%zu: %s", row->file, row->line,
                         empty ? "an empty answer" : "no answer");
    return 0;
}

/* The data set's own name for a row, else the number of its line. NULL: no memory. */
static char *row_id(const Row *row)
{
    static const char names[] = "idx|pairID|id|gem_id";
    const cJSON *field = find_field(row, names, strlen(names));
    char number[40];
    if (field && cJSON_IsString(field)) return copy_of(field->valuestring, strlen(field->valuestring));
    if (field && cJSON_IsNumber(field))
        snprintf(number, sizeof number, "%.15g", field->valuedouble);
    else
        snprintf(number, sizeof number, "%zu", row->line);
    return copy_of(number, strlen(number));
}

/* Makes the example of a row: 0, or 1 when the row is to be left out. Unless 0, nothing is left to free. */
static int example_from_row(const Task *task, const Row *row, Example *example, Error *error)
{
    int status = 0;
    *example = (Example){0};
    example->id = row_id(row);
    if (!example->id) status = out_of_memory(error, row->file);
    if (status == 0) status = fill_template(task->spec.template, row, &example->input, error);
    if (status == 0)
        status = task->spec.target ? read_targets(&task->spec, row, example, error)
                                   : read_label(&task->spec, row, example, error);
    if (status != 0) example_free(example);
    return status;
}

/* ----------------------------------------------------------------------------------------------- JSON lines and TSV */

static const char BYTE_ORDER_MARK[] = "\xef\xbb\xbf";

/* A NUL inside a JSON string is written \u0000; cJSON would end the C string there without a word. */
static bool holds_escaped_nul(const char *json)
{
    for (const char *p = strchr(json, '\\'); p; p = strchr(p + 2, '\\')) {
        if (strncmp(p + 1, "u0000", 5) == 0) return true;
        if (p[1] == '\0') return false;
    }
    return false;
}

/* Parses a JSON object; `line` is the number of its first line. NULL: error. */
static cJSON *parse_object(const char *json, const char *file, size_t line, Error *error)
{
    const char *end = json;
    cJSON *object;
    if (holds_escaped_nul(json)) {
        error_set(error, EXIT_USAGE, "%s:%zu: NUL (\\u0000) in a string", file, line);
        return NULL;
    }
    object = cJSON_ParseWithOpts(json, &end, true);
    if (!object) {
        const char *line_start = json;
        for (const char *p = json; p < end && *p; p++) {
            if (*p != '\n') continue;
            line++;
            line_start = p + 1;
        }
        error_set(error, EXIT_USAGE, "%s:%zu: malformed JSON at byte %zu", file, line, (size_t)(end - line_start) + 1);
        return NULL;
    }
    if (!cJSON_IsObject(object)) {
        error_set(error, EXIT_USAGE, "%s:%zu: expected a JSON object, found %s", file, line, kind_of(object));
        cJSON_Delete(object);
        return NULL;
    }
    return object;
}

/* As spreadsheets and pandas write them, a cell may stand in quotes, with "" for each quote inside: those are taken
 * off. A cell that is not wholly of that form stays as it is. */
static void unquote(char *cell)
{
    const size_t length = strlen(cell);
    char *to = cell;
    if (length < 2 || cell[0] != '"' || cell[length - 1] != '"') return;
    for (size_t i = 1; i + 1 < length; i++) {
        if (cell[i] != '"') continue;
        if (++i + 1 >= length || cell[i] != '"') return; /* a single quote inside */
    }
    for (size_t i = 1; i + 1 < length; i++) {
        *to++ = cell[i];
        i += cell[i] == '"';
    }
    *to = '\0';
}

/* The cells of a line, cut in place. Returns their number; the first max of them are stored. */
static size_t split_cells(char *line, char **cells, size_t max)
{
    size_t count = 0;
    for (char *cell = line; cell; count++) {
        char *tab = strchr(cell, '\t');
        if (tab) *tab++ = '\0';
        unquote(cell);
        if (count < max) cells[count] = cell;
        cell = tab;
    }
    return count;
}

/* The names of a TSV file's columns; they point into its first line. */
typedef struct {
    char **names;
    size_t count;
} Header;

/* The header line of a TSV file, cut in place. */
static int read_header(Header *header, char *line, const char *file, size_t number, Error *error)
{
    size_t count = 1;
    if (strncmp(line, BYTE_ORDER_MARK, 3) == 0) line += 3;
    for (const char *p = line; *p; p++) count += *p == '\t';
    header->names = calloc(count, sizeof *header->names);
    if (!header->names) return out_of_memory(error, file);
    header->count = split_cells(line, header->names, count);
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < i; k++) {
            if (strcmp(header->names[i], header->names[k]) == 0)
                return error_set(error, EXIT_USAGE, "%s:%zu: two columns have the name \"%.100s\"", file, number,
                                 header->names[i]);
        }
    }
    return 0;
}

/* A TSV line as the object it stands for. NULL: error. */
static cJSON *parse_tsv_row(const Header *header, char *line, const char *file, size_t number, Error *error)
{
    char **cells = calloc(header->count, sizeof *cells);
    cJSON *object = cJSON_CreateObject();
    bool done = cells && object;
    size_t found = done ? split_cells(line, cells, header->count) : 0;
    if (done && found != header->count) {
        error_set(error, EXIT_USAGE, "%s:%zu: malformed row (expected %zu columns, found %zu)", file, number,
                  header->count, found);
        done = false;
    } else {
        for (size_t i = 0; done && i < found; i++) done = cJSON_AddStringToObject(object, header->names[i], cells[i]);
        if (!done) out_of_memory(error, file);
    }
    free(cells);
    if (done) return object;
    cJSON_Delete(object);
    return NULL;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static bool is_blank(const char *line)
{
    return line[strspn(line, " \t")] == '\0';
}

/* JSON lines by the file's name or by its first character; everything else is TSV. */
static bool is_jsonl(const char *file, const Lines *lines)
{
    size_t first = 0;
    const char *text;
    if (ends_with(file, ".jsonl") || ends_with(file, ".json")) return true;
    while (first < lines->count && is_blank(lines->text[first])) first++;
    if (first == lines->count) return false;
    text = lines->text[first];
    if (strncmp(text, BYTE_ORDER_MARK, 3) == 0) text += 3;
    text += strspn(text, " \t");
    return *text == '{' || *text == '[';
}

/* -------------------------------------------------------------------------------------------------- reading a split */

/* Looks for a file in a directory. 1: there, *path is to be freed; 0: not there; -1: error. */
static int look_for(const char *directory, const char *name, char **path, Error *error)
{
    *path = path_join(directory, name);
    if (!*path) return out_of_memory(error, directory);
    if (path_exists(*path) && !path_is_directory(*path)) return 1;
    free(*path);
    *path = NULL;
    return 0;
}

/* The file of a split in a directory, such as train.jsonl or snli_1.0_train.jsonl; to be freed. NULL: error. */
static char *find_split(const TaskSpec *spec, const char *directory, Split split, Error *error)
{
    static const char *const names[2][5] = {{"train"}, {"val", "dev", "validation", "valid"}};
    static const char *const endings[] = {".jsonl", ".tsv", ".json"};
    char prefixes[3][120] = {"", "", ""}, name[400], *path = NULL;
    int found = 0;
    snprintf(prefixes[1], sizeof prefixes[1], "%s", spec->file_prefix ? spec->file_prefix : "");
    snprintf(prefixes[2], sizeof prefixes[2], "%.100s_", spec->name);
    if (spec->files[split]) {
        if (look_for(directory, spec->files[split], &path, error) == 0)
            error_set(error, EXIT_USAGE, "%s: no file %.200s in it", directory, spec->files[split]);
        return path;
    }
    for (size_t n = 0; names[split][n]; n++) {
        for (size_t p = 0; p < 3; p++) {
            for (size_t e = 0; e < 3 && found == 0; e++) {
                snprintf(name, sizeof name, "%s%s%s", prefixes[p], names[split][n], endings[e]);
                found = look_for(directory, name, &path, error);
            }
        }
    }
    if (found == 0)
        error_set(error, EXIT_USAGE, "%s: no %s split in it (expected %s with .jsonl or .tsv)", directory,
                  split == SPLIT_TRAIN ? "train" : "dev", split == SPLIT_TRAIN ? "train" : "val, dev or validation");
    return path;
}

/* Adds an example, which the list then owns; -1: no memory. */
static int examples_add(Examples *examples, size_t *capacity, const Example *example)
{
    if (examples->count == *capacity) {
        size_t larger = *capacity ? *capacity * 2 : 64;
        Example *grown = realloc(examples->items, larger * sizeof *grown);
        if (!grown) return -1;
        examples->items = grown;
        *capacity = larger;
    }
    examples->items[examples->count++] = *example;
    return 0;
}

/* Reads the rows of a file that has been cut into lines. */
static int read_rows(const Task *task, const char *file, const Lines *lines, size_t limit, Examples *out, Error *error)
{
    const bool jsonl = is_jsonl(file, lines);
    Header header = {0};
    size_t capacity = 0;
    int status = 0;
    for (size_t i = 0; status == 0 && i < lines->count && (limit == 0 || out->count < limit); i++) {
        Example example;
        cJSON *fields;
        if (is_blank(lines->text[i])) continue; /* mostly a last empty line */
        if (!jsonl && !header.names) {
            status = read_header(&header, lines->text[i], file, i + 1, error);
            continue;
        }
        fields = jsonl ? parse_object(lines->text[i], file, i + 1, error)
                       : parse_tsv_row(&header, lines->text[i], file, i + 1, error);
        if (!fields) status = -1;
        if (status == 0) status = example_from_row(task, &(Row){fields, file, i + 1}, &example, error);
        if (status == 0 && examples_add(out, &capacity, &example) != 0) {
            example_free(&example);
            status = out_of_memory(error, file);
        }
        if (status == 1) status = 0; /* left out */
        cJSON_Delete(fields);
    }
    free(header.names);
    if (status == 0 && out->count == 0) status = error_set(error, EXIT_USAGE, "%s: no examples in it", file);
    return status;
}

int task_read(const Task *task, const char *path, Split split, size_t limit, Examples *out, Error *error)
{
    Lines lines = {0};
    char *file;
    int status;
    *out = (Examples){0};
    if (!path_exists(path)) return error_set(error, EXIT_USAGE, "%s: no such file or directory", path);
    file = path_is_directory(path) ? find_split(&task->spec, path, split, error) : copy_of(path, strlen(path));
    if (!file) return path_is_directory(path) ? -1 : out_of_memory(error, path);
    status = lines_read(&lines, file, error);
    if (status == 0) status = read_rows(task, file, &lines, limit, out, error);
    if (status != 0) examples_free(out);
    lines_free(&lines);
    free(file);
    return status != 0 ? on_one_line(error) : 0;
}

/* ----------------------------------------------------------------------------------------------------- making tasks */

/* A task from a complete description; takes over own_labels and json, also when it fails. */
static Task *make_task(const TaskSpec *spec, Label *own_labels, cJSON *json, Error *error)
{
    Task *task = calloc(1, sizeof *task);
    const char **words = calloc(spec->n_labels + 1, sizeof *words);
    if (!task || !words) {
        out_of_memory(error, spec->name);
        free(task);
        free(words);
        free(own_labels);
        cJSON_Delete(json);
        return NULL;
    }
    *task = (Task){.spec = *spec, .words = words, .own_labels = own_labels, .json = json};
    for (size_t i = 0; i < spec->n_labels; i++) {
        bool known = spec->labels[i].word == NULL;
        for (size_t k = 0; !known && k < task->n_words; k++) known = strcmp(words[k], spec->labels[i].word) == 0;
        if (!known) words[task->n_words++] = spec->labels[i].word;
    }
    return task;
}

/* The error for an unknown name lists those that are known. */
Task *task_builtin(const char *name, Error *error)
{
    Text names = {0};
    char *list;
    bool without_reader = false;
    for (size_t i = 0; i < BUILTINS; i++) {
        if (strcmp(BUILTIN[i].name, name) == 0) return make_task(&BUILTIN[i], NULL, NULL, error);
    }
    for (size_t i = 0; i < sizeof WITHOUT_READER / sizeof *WITHOUT_READER; i++)
        without_reader |= strcmp(WITHOUT_READER[i], name) == 0;
    for (size_t i = 0; i < BUILTINS; i++) {
        if (i) text_append(&names, " ", 1);
        text_append(&names, BUILTIN[i].name, strlen(BUILTIN[i].name));
    }
    list = text_take(&names);
    error_set(error, EXIT_USAGE, "%.100s: %s (expected one of %s, or a --task-file)", name,
              without_reader ? "this version has no reader for it" : "no such task", list ? list : "");
    free(list);
    return NULL;
}

/* An own task: a JSON object with these keys, and no others:
 *     name         required; letters, digits, ". _ -" (it names directories)
 *     template     required: the input, with {field} places; {{ and }} stand for braces
 *     labels       for classes: {"stored label": "word", …}; true, false and numbers are stored as "true", "false", "0"
 *     label_field  the field with the label, "label" unless said
 *     target       instead of labels: the answer, with places. If it is one place and nothing else, the field may hold
 *                  a list of accepted answers, of which the first is trained on
 *     accepted     with target: a field that holds further accepted answers, a list or one string
 *     metric       a name of metrics.h; "accuracy" for classes unless said, else required
 *     prefix       outputs are cut where this text occurs in them
 *     train, dev   names of the split files in the data set's directory, if not the usual ones */
static const char *const OWN_KEYS[] = {"name",     "template", "labels", "label_field", "target",
                                       "accepted", "metric",   "prefix", "train",       "dev"};

/* The string under a key, into *value, which stays as it is when there is none. */
static int own_string(const cJSON *json, const char *key, const char **value, const char *file, Error *error)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!item) return 0;
    if (!cJSON_IsString(item) || item->valuestring[0] == '\0')
        return error_set(error, EXIT_USAGE, "%s: wrong value of \"%s\" (expected a string that is not empty, found %s)",
                         file, key, cJSON_IsString(item) ? "an empty one" : kind_of(item));
    *value = item->valuestring;
    return 0;
}

/* An unknown key is most likely a known one misspelt, so it is not passed over. */
static int check_own_keys(const cJSON *json, const char *file, Error *error)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, json)
    {
        bool known = false;
        for (size_t i = 0; i < sizeof OWN_KEYS / sizeof *OWN_KEYS; i++) known |= strcmp(OWN_KEYS[i], item->string) == 0;
        if (!known)
            return error_set(
                error, EXIT_USAGE,
                "%s: unknown key \"%.100s\" (expected name, template, labels, label_field, target, accepted, "
                "metric, prefix, train, dev)",
                file, item->string);
    }
    return 0;
}

/* "labels": stored label to word. */
static int read_own_labels(const cJSON *json, TaskSpec *spec, Label **labels, const char *file, Error *error)
{
    const cJSON *item, *object = cJSON_GetObjectItemCaseSensitive(json, "labels");
    size_t count = 0;
    if (!object) return 0;
    if (!cJSON_IsObject(object) || !object->child)
        return error_set(error, EXIT_USAGE,
                         "%s: wrong value of \"labels\" (expected {\"stored label\": \"word\", …}, found %s)", file,
                         cJSON_IsObject(object) ? "nothing in it" : kind_of(object));
    *labels = calloc((size_t)cJSON_GetArraySize(object), sizeof **labels);
    if (!*labels) return out_of_memory(error, file);
    cJSON_ArrayForEach(item, object)
    {
        if (!cJSON_IsString(item) || item->valuestring[0] == '\0')
            return error_set(error, EXIT_USAGE,
                             "%s: wrong word of label \"%.100s\" (expected a string that is not empty)", file,
                             item->string);
        (*labels)[count++] = (Label){item->string, item->valuestring};
    }
    spec->labels = *labels;
    spec->n_labels = count;
    if (!spec->label_field) spec->label_field = "label";
    return 0;
}

/* A template without a place would give every example the same text: surely a slip. */
static int check_template(const char *template, const char *key, const char *file, Error *error)
{
    const int places = count_places(template);
    if (places < 0)
        return error_set(error, EXIT_USAGE, "%s: \"%s\" has a brace without a partner ({{ and }} stand for braces)",
                         file, key);
    if (places == 0) return error_set(error, EXIT_USAGE, "%s: \"%s\" has no {field} place", file, key);
    return 0;
}

/* What must be there, what excludes what. metric is the name that was given, or NULL. */
static int check_own_spec(TaskSpec *spec, const char *metric, const char *file, Error *error)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    if (!spec->name || !spec->template)
        return error_set(error, EXIT_USAGE, "%s: no \"%s\"", file, spec->name ? "template" : "name");
    if (spec->name[strspn(spec->name, allowed)] != '\0' || spec->name[0] == '.')
        return error_set(error, EXIT_USAGE, "%s: wrong \"name\" (expected letters, digits, . _ -, found \"%.100s\")",
                         file, spec->name);
    if (!spec->target == !spec->labels)
        return error_set(error, EXIT_USAGE, "%s: expected either \"labels\" or \"target\", found %s", file,
                         spec->target ? "both" : "neither");
    if (spec->labels && spec->accepted)
        return error_set(error, EXIT_USAGE, "%s: \"accepted\" goes with \"target\", not with \"labels\"", file);
    if (spec->target && spec->label_field)
        return error_set(error, EXIT_USAGE, "%s: \"label_field\" goes with \"labels\", not with \"target\"", file);
    if (check_template(spec->template, "template", file, error) != 0) return -1;
    if (spec->target && check_template(spec->target, "target", file, error) != 0) return -1;
    if (!metric && spec->target) return error_set(error, EXIT_USAGE, "%s: no \"metric\"", file);
    if (metric && metric_by_name(&spec->metric, metric) != 0)
        return error_set(
            error, EXIT_USAGE,
            "%s: unknown \"metric\" (expected accuracy, trivia-em, squad-em, bleu, rouge2, …, found \"%.100s\")", file,
            metric);
    return 0;
}

/* The strings of spec point into json, which the caller keeps. */
static int read_own_spec(const cJSON *json, TaskSpec *spec, Label **labels, const char *file, Error *error)
{
    const char *metric = NULL;
    const struct {
        const char *key, **value;
    } strings[] = {
        {"name", &spec->name},     {"template", &spec->template},        {"label_field", &spec->label_field},
        {"target", &spec->target}, {"accepted", &spec->accepted},        {"metric", &metric},
        {"prefix", &spec->prefix}, {"train", &spec->files[SPLIT_TRAIN]}, {"dev", &spec->files[SPLIT_DEV]},
    };
    *spec = (TaskSpec){.metric = METRIC_ACCURACY};
    if (check_own_keys(json, file, error) != 0) return -1;
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        if (own_string(json, strings[i].key, strings[i].value, file, error) != 0) return -1;
    }
    if (read_own_labels(json, spec, labels, file, error) != 0) return -1;
    return check_own_spec(spec, metric, file, error);
}

Task *task_from_file(const char *path, Error *error)
{
    MappedFile file = {0};
    Lines lines = {0};
    Label *labels = NULL;
    TaskSpec spec;
    cJSON *json = NULL;
    char *text = NULL;
    if (mapped_file_open(&file, path, error) != 0) return NULL;
    if (lines_split(&lines, (const char *)file.data, file.bytes, path, error) == 0) { /* it is UTF-8 without NUL */
        text = copy_of((const char *)file.data, file.bytes);
        if (!text) out_of_memory(error, path);
    }
    lines_free(&lines);
    mapped_file_close(&file);
    if (text) json = parse_object(text, path, 1, error);
    free(text);
    if (!json) return NULL;
    if (read_own_spec(json, &spec, &labels, path, error) == 0) return make_task(&spec, labels, json, error);
    on_one_line(error);
    free(labels);
    cJSON_Delete(json);
    return NULL;
}

void task_free(Task *task)
{
    if (!task) return;
    free(task->words);
    free(task->own_labels);
    cJSON_Delete(task->json);
    free(task);
}

const char *task_name(const Task *task)
{
    return task->spec.name;
}

Metric task_metric(const Task *task)
{
    return task->spec.metric;
}

bool task_is_classification(const Task *task)
{
    return task->n_words > 0;
}

size_t task_labels(const Task *task, const char *const **words)
{
    *words = task->words;
    return task->n_words;
}

/* -------------------------------------------------------------------------------------------- few shots and outputs */

/* The paper's order: worked examples first, the input last (a soft prompt comes in front of all, in the encoder). An
 * input ends in "answer:"; one space stands between it and its answer, so that the answer begins a new piece. */
char *few_shot_input(const Example *const *shots, size_t n_shots, const Example *query, const char *separator)
{
    Text text = {0};
    for (size_t i = 0; i < n_shots; i++) {
        text_append(&text, shots[i]->input, strlen(shots[i]->input));
        text_append(&text, " ", 1);
        text_append(&text, shots[i]->targets[0], strlen(shots[i]->targets[0]));
        text_append(&text, separator, strlen(separator));
    }
    text_append(&text, query->input, strlen(query->input));
    return text_take(&text);
}

/* Cuts white space off both ends of [*from, *to). */
static void trim(const char **from, const char **to)
{
    while (*from < *to && isspace((unsigned char)**from)) ++*from;
    while (*from < *to && isspace((unsigned char)(*to)[-1])) --*to;
}

/* The end of the first word of a class: that of the longest label word which stands there as a whole word ("True." says
 * True), else the next white space. Bytes of other than ASCII characters count as letters. */
static const char *first_word_end(const Task *task, const char *from, const char *to)
{
    const char *end = from;
    for (size_t i = 0; i < task->n_words; i++) {
        const size_t length = strlen(task->words[i]);
        if ((size_t)(to - from) < length || memcmp(from, task->words[i], length) != 0) continue;
        const unsigned char next = from + length < to ? (unsigned char)from[length] : ' ';
        if (next < 0x80 && !isalnum(next) && from + length > end) end = from + length;
    }
    if (end > from) return end;
    while (end < to && !isspace((unsigned char)*end)) end++;
    return end;
}

/* A model that was only pretrained answers as if it filled blanks, "<extra_id_0> ANSWER <extra_id_1>"; a fine-tuned one
 * writes the answer alone (ProMoT, appendix B). The prompt ends in an input that holds the template's prefix: where the
 * output holds it a second time, the model has begun on a next example of its own. */
char *task_postprocess(const Task *task, const char *raw_output)
{
    static const char first[] = "<extra_id_0>", second[] = "<extra_id_1>";
    const char *from = strstr(raw_output, first), *to, *prefix;
    from = from ? from + strlen(first) : raw_output;
    to = strstr(from, second);
    if (!to) to = from + strlen(from);
    prefix = task->spec.prefix ? strstr(from, task->spec.prefix) : NULL;
    if (prefix && prefix < to) to = prefix;
    trim(&from, &to);
    if (task_is_classification(task)) to = first_word_end(task, from, to);
    return copy_of(from, (size_t)(to - from));
}
