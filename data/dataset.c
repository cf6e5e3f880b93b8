/* dataset.c: the rows of a split, one at a time, by number. See tasks.h.
 *
 * The files are mapped, not read into memory. Opening walks through every row once: it checks it, counts it, and
 * notes the place of every stride-th row in an index. When the index is full, every second entry goes and the stride
 * doubles, so it never has more than MAX_INDEX entries, whatever the number of rows. Getting a row jumps to the
 * nearest entry before it and steps over the rows in between: at most a stride of them, 255 for fifteen million
 * rows.
 *
 * A row is a line of JSON, an element of a JSON list, a line of TSV, a line each of two files side by side, or a
 * <seg> each of two sgm files. All of them become the JSON object they stand for, and everything after that is
 * task_rows.c. */
#include <stdio.h>

#include "files.h"
#include "tasks_internal.h"

static const char BYTE_ORDER_MARK[] = "\xef\xbb\xbf";
static const size_t MAX_INDEX = 65536;

typedef enum { JSON_LINES, JSON_LIST, TSV, TSV_PAIRS, LINE_PAIRS, SGM_PAIRS } Format;

/* Where something begins in a file. */
typedef struct {
    size_t offset, line; /* lines count from 1 */
} Position;

/* A piece of a file. */
typedef struct {
    const char *text;
    size_t length, line;
} Span;

/* A file of a split, or two side by side. */
typedef struct {
    MappedFile file[2];
    Format format;
    Position start[2]; /* of the first row; of a JSON list [1] is where it, or the object around it, begins */
    char *header_line; /* of TSV, cut into the names */
    char **names;      /* [n_names]: of its columns */
    size_t n_names;
} Source;

/* Where a row begins. */
typedef struct {
    size_t source;
    Position at[2];
} Place;

/* A row as it lies in its file. The second span is the other side of a pair. */
typedef struct {
    const Source *source;
    Span span[2];
} RawRow;

struct Dataset {
    const Task *task;
    Source *sources;
    size_t n_sources;
    Place *index; /* [n_index]: entry i is the row i * stride */
    size_t n_index, capacity, max_index, stride;
    size_t count;
};

static bool is_pair(Format format)
{
    return format >= TSV_PAIRS;
}

/* ------------------------------------------------------------------------------------------------------------ lines */

static const char *text_of(const MappedFile *file)
{
    return (const char *)file->data;
}

/* A span that reaches from one place to another. */
static Span span_between(const MappedFile *file, Position from, size_t end)
{
    return (Span){text_of(file) + from.offset, end - from.offset, from.line};
}

/* Takes the next line, without its end (\n or \r\n); false: there is none. */
static bool next_line(const MappedFile *file, Position *at, Span *line)
{
    const char *from = text_of(file) + at->offset, *newline;
    if (at->offset >= file->bytes) return false;
    newline = memchr(from, '\n', file->bytes - at->offset);
    *line = span_between(file, *at, newline ? (size_t)(newline - text_of(file)) : file->bytes);
    at->offset += line->length + (newline != NULL);
    at->line++;
    if (newline && line->length > 0 && from[line->length - 1] == '\r') line->length--;
    return true;
}

static bool is_blank(Span span)
{
    for (size_t i = 0; i < span.length; i++) {
        if (span.text[i] != ' ' && span.text[i] != '\t') return false;
    }
    return true;
}

/* Takes the next line that is not blank. */
static bool next_full_line(const MappedFile *file, Position *at, Span *line)
{
    while (next_line(file, at, line)) {
        if (!is_blank(*line)) return true;
    }
    return false;
}

/* Without the blanks at its ends. */
static Span trimmed(Span span)
{
    const char *from = span.text, *to = span.text + span.length;
    text_trim(&from, &to);
    return (Span){from, (size_t)(to - from), span.line};
}

/* All that we read is UTF-8 without NULs. */
static int check_text(const MappedFile *file, Span span, Error *error)
{
    const size_t valid = utf8_valid_length(span.text, span.length);
    size_t line = span.line;
    if (valid == span.length) return 0;
    for (size_t i = 0; i < valid; i++) line += span.text[i] == '\n';
    if (span.text[valid] == '\0')
        return error_set(error, EXIT_USAGE, "%.700s:%zu: has a NUL byte (expected text)", file->path, line);
    return error_set(error, EXIT_USAGE, "%.700s:%zu: is not valid UTF-8 (a byte is 0x%02x)", file->path, line,
                     (unsigned char)span.text[valid]);
}

/* ------------------------------------------------------------------------------------------------------- JSON lists */

static int malformed_list(const MappedFile *file, size_t line, const char *what, Error *error)
{
    return error_set(error, EXIT_USAGE, "%.700s:%zu: malformed JSON: %s", file->path, line, what);
}

static void skip_space(const MappedFile *file, Position *at)
{
    const char *text = text_of(file);
    for (; at->offset < file->bytes; at->offset++) {
        const char c = text[at->offset];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
        at->line += c == '\n';
    }
}

/* The byte at a place, NUL at the end of the file. */
static char byte_at(const MappedFile *file, Position at)
{
    return at.offset < file->bytes ? text_of(file)[at.offset] : '\0';
}

/* Moves behind a string that begins here; false: it does not end. */
static bool skip_string(const MappedFile *file, Position *at)
{
    const char *text = text_of(file);
    for (at->offset++; at->offset < file->bytes; at->offset++) {
        const char c = text[at->offset];
        at->line += c == '\n';
        if (c == '"') {
            at->offset++;
            return true;
        }
        if (c == '\\') at->offset++;
    }
    at->offset = file->bytes;
    return false;
}

/* Moves behind the value that begins here, or, where `depth` says so, out of the lists and objects around it; false:
 * the file ends before. Goes by quotes and brackets alone (what is in a value, its parser judges), and without
 * recursion, so that no nesting is too deep for it. */
static bool skip_value(const MappedFile *file, Position *at, size_t depth)
{
    const char *text = text_of(file);
    while (at->offset < file->bytes) {
        const char c = text[at->offset];
        if (c == '"') {
            if (!skip_string(file, at)) return false;
            if (depth == 0) return true;
            continue;
        }
        if (c == '[' || c == '{') depth++;
        if (depth == 0 && (c == ',' || c == ']' || c == '}' || c == ':' || strchr(" \t\r\n", c))) return true;
        at->offset++;
        at->line += c == '\n';
        if ((c == ']' || c == '}') && --depth == 0) return true;
    }
    return false;
}

/* The place of the list that stands in the object at `at` under a key; false: there is none. */
static bool find_list(const MappedFile *file, Position *at, const char *key)
{
    if (byte_at(file, *at) != '{') return false;
    do {
        size_t begin;
        at->offset++;
        skip_space(file, at);
        begin = at->offset;
        if (byte_at(file, *at) != '"' || !skip_string(file, at)) return false;
        const Span name = {text_of(file) + begin + 1, at->offset - begin - 2, 0};
        skip_space(file, at);
        if (byte_at(file, *at) != ':') return false;
        at->offset++;
        skip_space(file, at);
        if (name.length == strlen(key) && memcmp(name.text, key, name.length) == 0) return byte_at(file, *at) == '[';
        if (!skip_value(file, at, 0)) return false;
        skip_space(file, at);
    } while (byte_at(file, *at) == ',');
    return false;
}

/* What follows the list of the rows: nothing, or the rest of the object that it stands in. */
static int check_list_end(const Source *source, Position at, Error *error)
{
    const MappedFile *file = &source->file[0];
    Position begin = source->start[1]; /* of the object, or of the list */
    const size_t depth = byte_at(file, begin) == '{' ? 1 : 0;
    at.offset++;
    if (depth > 0 && !skip_value(file, &at, depth))
        return malformed_list(file, begin.line, "the object that begins here does not end", error);
    skip_space(file, &at);
    return at.offset == file->bytes ? 0 : malformed_list(file, at.line, "more text after its end", error);
}

/* Takes the next element of a list: 1, 0 at the end, -1. `at` is at an element or at the closing bracket. */
static int next_element(const Source *source, Position *at, Span *row, Error *error)
{
    const MappedFile *file = &source->file[0];
    const Position begin = *at;
    if (byte_at(file, begin) == ']') return check_list_end(source, begin, error);
    if (!skip_value(file, at, 0))
        return malformed_list(file, begin.line, "the file ends inside the element that begins here", error);
    *row = span_between(file, begin, at->offset);
    skip_space(file, at);
    if (byte_at(file, *at) == ',') {
        at->offset++;
        skip_space(file, at);
        if (byte_at(file, *at) != ']') return 1;
    } else if (byte_at(file, *at) == ']') {
        return 1;
    }
    return malformed_list(file, at->line, "expected another element, or a comma and one, or the end of the list",
                          error);
}

/* -------------------------------------------------------------------------------------------------------------- sgm */

/* Moves to the next "<NAME" (in any case) from a place on; false: there is none. */
static bool find_tag(const MappedFile *file, Position *at, const char *name)
{
    const char *text = text_of(file);
    const size_t length = strlen(name);
    for (; at->offset < file->bytes; at->offset++) {
        size_t i = 0;
        at->line += text[at->offset] == '\n';
        if (text[at->offset] != '<' || file->bytes - at->offset - 1 < length + 1) continue;
        while (i < length && (text[at->offset + 1 + i] | 0x20) == name[i]) i++;
        if (i == length && strchr(" \t\r\n>", text[at->offset + 1 + length]) && text[at->offset + 1 + length])
            return true;
    }
    return false;
}

/* Moves behind the end of the tag at a place; false: it has none. */
static bool skip_tag(const MappedFile *file, Position *at)
{
    for (; at->offset < file->bytes; at->offset++) {
        const char c = text_of(file)[at->offset];
        at->line += c == '\n';
        if (c == '>') {
            at->offset++;
            return true;
        }
    }
    return false;
}

/* Takes the text of the next <seg id="…">text</seg>: 1, 0 at the end, -1. The files of WMT are no good XML; all that is
 * relied on is that a segment ends before the next one begins. */
static int next_segment(const MappedFile *file, Position *at, Span *row, Error *error)
{
    Position begin, end, next;
    if (!find_tag(file, at, "seg")) return 0;
    begin = *at;
    if (skip_tag(file, at)) {
        end = next = *at;
        *row = (Span){NULL, 0, begin.line};
        if (find_tag(file, &end, "/seg") && (!find_tag(file, &next, "seg") || end.offset < next.offset)) {
            *row = span_between(file, *at, end.offset);
            *at = end;
            return skip_tag(file, at);
        }
    }
    return error_set(error, EXIT_USAGE, "%.700s:%zu: <seg> without </seg>", file->path, begin.line);
}

/* The text of a segment: entities are replaced, and a line break is a blank. NULL: no memory. */
static char *segment_text(Span span)
{
    static const char *const entities[][2] = {
        {"&amp;", "&"}, {"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&apos;", "'"}};
    TextBuffer text = {0};
    for (size_t i = 0; i < span.length;) {
        const char *with = NULL;
        size_t length = 1;
        for (size_t e = 0; span.text[i] == '&' && e < sizeof entities / sizeof *entities; e++) {
            const size_t entity = strlen(entities[e][0]);
            if (span.length - i < entity || memcmp(span.text + i, entities[e][0], entity) != 0) continue;
            with = entities[e][1];
            length = entity;
        }
        if (span.text[i] == '\n' || span.text[i] == '\r') with = " ";
        text_put_bytes(&text, with ? with : span.text + i, 1);
        i += length;
    }
    return text_take(&text);
}

/* -------------------------------------------------------------------------------------------------------------- TSV */

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

/* The names of the columns, from the first line. */
static int read_header(Source *source, Span line, Error *error)
{
    const char *file = source->file[0].path;
    size_t count = 1;
    if (check_text(&source->file[0], line, error) != 0) return -1;
    for (size_t i = 0; i < line.length; i++) count += line.text[i] == '\t';
    source->header_line = text_copy(line.text, line.length);
    source->names = calloc(count, sizeof *source->names);
    if (!source->header_line || !source->names) return out_of_memory(error, file);
    source->n_names = split_cells(source->header_line, source->names, count);
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < i; k++) {
            if (strcmp(source->names[i], source->names[k]) == 0)
                return error_set(error, EXIT_USAGE, "%.700s:%zu: two columns have the name \"%.100s\"", file, line.line,
                                 source->names[i]);
        }
    }
    return 0;
}

/* A TSV line as the object it stands for. NULL: error. */
static cJSON *tsv_object(const Source *source, char *line, size_t number, Error *error)
{
    const char *file = source->file[0].path;
    char **cells = calloc(source->n_names, sizeof *cells);
    cJSON *object = cJSON_CreateObject();
    bool done = cells && object;
    size_t found = done ? split_cells(line, cells, source->n_names) : 0;
    if (done && found != source->n_names) {
        error_set(error, EXIT_USAGE, "%.700s:%zu: malformed row (expected %zu columns, found %zu)", file, number,
                  source->n_names, found);
        done = false;
    } else {
        for (size_t i = 0; done && i < found; i++) done = cJSON_AddStringToObject(object, source->names[i], cells[i]);
        if (!done) out_of_memory(error, file);
    }
    free(cells);
    if (done) return object;
    cJSON_Delete(object);
    return NULL;
}

/* Sentence pairs without a header: two columns, and others (whose sentences these are) that are passed over. Quotes are
 * the sentences' own. */
static int split_pair(const MappedFile *file, Span line, Span pair[2], Error *error)
{
    const char *tab = memchr(line.text, '\t', line.length), *end = line.text + line.length, *second;
    if (!tab)
        return error_set(error, EXIT_USAGE, "%.700s:%zu: malformed row (expected 2 columns, found 1)", file->path,
                         line.line);
    second = memchr(tab + 1, '\t', (size_t)(end - tab - 1));
    pair[0] = (Span){line.text, (size_t)(tab - line.text), line.line};
    pair[1] = (Span){tab + 1, (size_t)((second ? second : end) - tab - 1), line.line};
    return 1;
}

/* ------------------------------------------------------------------------------------------------------------- rows */

/* Takes the next line or segment of one of two files: 1, 0 at the end, -1. */
static int next_side(const Source *source, int side, Position *at, Span *row, Error *error)
{
    if (source->format == SGM_PAIRS) return next_segment(&source->file[side], at, row, error);
    return next_line(&source->file[side], at, row);
}

/* Two files of which one has ended before the other. */
static int uneven(const Source *source, Error *error)
{
    size_t count[2] = {0, 0};
    for (int side = 0; side < 2; side++) {
        Position at = source->start[side];
        Span row;
        int status;
        while ((status = next_side(source, side, &at, &row, error)) > 0) count[side]++;
        if (status < 0) return -1;
    }
    return error_set(error, EXIT_USAGE, "%.400s has %zu %s, %.400s has %zu (expected as many)", source->file[0].path,
                     count[0], source->format == SGM_PAIRS ? "segments" : "lines", source->file[1].path, count[1]);
}

/* Takes the next row of a file: 1, 0 at the end, -1. */
static int next_of_source(const Source *source, Position at[2], RawRow *row, Error *error)
{
    int status[2];
    row->source = source;
    switch (source->format) {
    case JSON_LIST:
        return next_element(source, &at[0], &row->span[0], error);
    case JSON_LINES:
    case TSV:
        return next_full_line(&source->file[0], &at[0], &row->span[0]);
    case TSV_PAIRS:
        if (!next_full_line(&source->file[0], &at[0], &row->span[0])) return 0;
        return split_pair(&source->file[0], row->span[0], row->span, error);
    case LINE_PAIRS:
    case SGM_PAIRS:
        break;
    }
    for (int side = 0; side < 2; side++) {
        status[side] = next_side(source, side, &at[side], &row->span[side], error);
        if (status[side] < 0) return -1;
    }
    return status[0] == status[1] ? status[0] : uneven(source, error);
}

/* Takes the next row of all files. */
static int next_row(const Dataset *dataset, Place *place, RawRow *row, Error *error)
{
    while (place->source < dataset->n_sources) {
        const int status = next_of_source(&dataset->sources[place->source], place->at, row, error);
        if (status != 0) return status;
        if (++place->source < dataset->n_sources)
            memcpy(place->at, dataset->sources[place->source].start, sizeof place->at);
    }
    return 0;
}

/* Adds one side of a pair to an object, under the first of the names that the task has for it. */
static bool add_side(const Dataset *dataset, const RawRow *row, int side, cJSON *object)
{
    const char *names = dataset->task->spec.pair.fields[side];
    const Span span = trimmed(row->span[side]);
    char *name = text_copy(names, strcspn(names, "|"));
    char *text = row->source->format == SGM_PAIRS ? segment_text(span) : text_copy(span.text, span.length);
    const bool added = name && text && cJSON_AddStringToObject(object, name, text);
    free(name);
    free(text);
    return added;
}

/* The object that a row stands for. NULL: error. */
static cJSON *row_object(const Dataset *dataset, const RawRow *row, Error *error)
{
    const char *file = row->source->file[0].path;
    cJSON *object = NULL;
    if (is_pair(row->source->format)) {
        object = cJSON_CreateObject();
        if (object && add_side(dataset, row, 0, object) && add_side(dataset, row, 1, object)) return object;
        cJSON_Delete(object);
        out_of_memory(error, file);
        return NULL;
    }
    char *text = text_copy(row->span[0].text, row->span[0].length);
    if (!text)
        out_of_memory(error, file);
    else if (row->source->format == TSV)
        object = tsv_object(row->source, text, row->span[0].line, error);
    else
        object = json_object(text, file, row->span[0].line, error);
    free(text);
    return object;
}

/* The example of a row: 0, 1 when the row is left out, or -1. */
static int row_example(const Dataset *dataset, const RawRow *row, Example *example, Error *error)
{
    cJSON *object = row_object(dataset, row, error);
    int status;
    if (!object) return -1;
    status =
        example_from_row(dataset->task, &(Row){object, row->source->file[0].path, row->span[0].line}, example, error);
    cJSON_Delete(object);
    return status;
}

/* Whether a row counts: 1, 0 when it is left out, or -1. `check`: it has not been looked at before. The rows of
 * pairs all have the same two fields: what fits the first of them fits the others, unless a side is empty. */
static int row_counts(const Dataset *dataset, const RawRow *row, bool check, Error *error)
{
    const bool pair = is_pair(row->source->format);
    Example example;
    int status;
    for (int side = 0; check && side <= pair; side++) {
        const int file = row->source->format == TSV_PAIRS ? 0 : side;
        if (check_text(&row->source->file[file], row->span[side], error) != 0) return -1;
    }
    if (pair && (trimmed(row->span[0]).length == 0 || trimmed(row->span[1]).length == 0)) return 0;
    if (pair ? !check || dataset->count > 0 : !check && !task_leaves_out_rows(dataset->task)) return 1;
    status = row_example(dataset, row, &example, error);
    if (status == 0) example_free(&example);
    return status < 0 ? -1 : !status;
}

/* ------------------------------------------------------------------------------------------------------------ files */

/* Whether the first line of TSV names both sides of the pairs. */
static bool names_both_sides(const Task *task, Span line)
{
    bool named[2] = {false, false};
    for (Span rest = line;;) {
        const char *tab = memchr(rest.text, '\t', rest.length);
        const size_t length = tab ? (size_t)(tab - rest.text) : rest.length;
        for (int side = 0; side < 2; side++) {
            const char *names = task->spec.pair.fields[side];
            const size_t name = strcspn(names, "|");
            named[side] |= length == name && memcmp(rest.text, names, name) == 0;
        }
        if (!tab) return named[0] && named[1];
        rest = (Span){tab + 1, rest.length - length - 1, rest.line};
    }
}

/* JSON by the file's name or by its first character; everything else is TSV. A list is one by its first character, or
 * stands in an object, as TriviaQA's does. */
static int begin_single(Source *source, const Task *task, Error *error)
{
    const MappedFile *file = &source->file[0];
    Position at = source->start[0];
    const char *rows_key = task->spec.rows_key;
    const bool named = name_ends_with(file->path, ".jsonl") || name_ends_with(file->path, ".json");
    Span line;
    skip_space(file, &at);
    if (named || (!name_ends_with(file->path, ".tsv") && (byte_at(file, at) == '{' || byte_at(file, at) == '['))) {
        Position list = at;
        source->start[1] = at;
        if (byte_at(file, at) != '[' && !(rows_key && find_list(file, &list, rows_key))) {
            source->format = JSON_LINES;
            return 0;
        }
        list.offset++;
        skip_space(file, &list);
        source->start[0] = list;
        source->format = JSON_LIST;
        return 0;
    }
    at = source->start[0];
    source->format = TSV;
    if (!next_full_line(file, &at, &line)) return 0; /* an empty file */
    if (task->spec.pair.sentences && !names_both_sides(task, line)) {
        source->format = TSV_PAIRS;
        return 0;
    }
    source->start[0] = at;
    return read_header(source, line, error);
}

/* Finds out how a source is laid out, and where its rows begin. */
static int source_begin(Source *source, const Task *task, Error *error)
{
    for (int side = 0; side < 2; side++) {
        const MappedFile *file = &source->file[side];
        const bool mark = file->bytes >= 3 && memcmp(file->data, BYTE_ORDER_MARK, 3) == 0;
        if (file->bytes >= 2 && file->data[0] == 0x1f && file->data[1] == 0x8b)
            return error_set(error, EXIT_USAGE, "%.700s: is compressed (gunzip it first)", file->path);
        source->start[side] = (Position){mark ? 3 : 0, 1};
    }
    if (!source->file[1].path) return begin_single(source, task, error);
    source->format = name_ends_with(source->file[0].path, ".sgm") ? SGM_PAIRS : LINE_PAIRS;
    return 0;
}

static int open_sources(Dataset *dataset, const SplitFiles *files, Error *error)
{
    dataset->sources = calloc(files->count, sizeof *dataset->sources);
    if (!dataset->sources) return out_of_memory(error, files->paths[0][0]);
    for (size_t i = 0; i < files->count; i++) {
        Source *source = &dataset->sources[i];
        dataset->n_sources = i + 1;
        for (int side = 0; side < 2; side++) {
            if (files->paths[i][side] && mapped_file_open(&source->file[side], files->paths[i][side], error) != 0)
                return -1;
        }
        if (source_begin(source, dataset->task, error) != 0) return -1;
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------------------ index */

/* Notes the place of the row that comes next, if it is one of every stride-th. */
static int index_add(Dataset *dataset, const Place *place, Error *error)
{
    if (dataset->count % dataset->stride != 0) return 0;
    if (dataset->n_index == dataset->max_index) {
        for (size_t i = 0; 2 * i < dataset->n_index; i++) dataset->index[i] = dataset->index[2 * i];
        dataset->n_index = (dataset->n_index + 1) / 2;
        dataset->stride *= 2;
        if (dataset->count % dataset->stride != 0) return 0;
    }
    if (dataset->n_index == dataset->capacity) {
        const size_t larger = dataset->capacity ? dataset->capacity * 2 : 64;
        Place *grown = realloc(dataset->index, larger * sizeof *grown);
        if (!grown) return out_of_memory(error, dataset->sources[0].file[0].path);
        dataset->index = grown;
        dataset->capacity = larger;
    }
    dataset->index[dataset->n_index++] = *place;
    return 0;
}

static Place first_place(const Dataset *dataset)
{
    Place place = {.source = 0};
    memcpy(place.at, dataset->sources[0].start, sizeof place.at);
    return place;
}

/* A process' memory counts the pages of a mapped file that it has touched. Of files larger than this they are given
 * back once they have been read. */
static const size_t LARGE_FILE = 8 << 20;

/* Gives back what lies between two places of one source. */
static void forget_between(const Dataset *dataset, const Place *from, const Place *to)
{
    const Source *source = &dataset->sources[from->source];
    for (int side = 0; from->source == to->source && side < 2; side++)
        if (source->file[side].bytes > LARGE_FILE)
            mapped_file_forget(&source->file[side], from->at[side].offset, to->at[side].offset);
}

/* Checks and counts all rows, and makes the index. */
static int count_rows(Dataset *dataset, size_t max_index, Error *error)
{
    Place place = first_place(dataset), before = place, kept = place; /* kept: from here on pages are kept */
    RawRow row;
    int status;
    dataset->stride = 1;
    dataset->max_index = max_index;
    while ((status = next_row(dataset, &place, &row, error)) > 0) {
        status = row_counts(dataset, &row, true, error);
        if (status > 0 && index_add(dataset, &before, error) != 0) status = -1;
        if (status < 0) break;
        dataset->count += (size_t)status;
        before = place;
        if (place.source != kept.source) kept = place;
        if (place.at[0].offset - kept.at[0].offset > LARGE_FILE) {
            forget_between(dataset, &kept, &place);
            kept = place;
        }
    }
    if (status == 0 && dataset->count == 0)
        status = error_set(error, EXIT_USAGE, "%.700s: no examples in it", dataset->sources[0].file[0].path);
    return status;
}

/* --------------------------------------------------------------------------------------------------------- the face */

Dataset *dataset_open(const Task *task, const char *path, Split split, Error *error)
{
    SplitFiles files;
    Dataset *dataset = NULL;
    if (split_files_find(&files, &task->spec, path, split, error) == 0) {
        dataset = calloc(1, sizeof *dataset);
        int status = dataset ? 0 : out_of_memory(error, path);
        if (dataset) dataset->task = task;
        if (status == 0) status = open_sources(dataset, &files, error);
        if (status == 0) status = count_rows(dataset, MAX_INDEX, error);
        split_files_free(&files);
        if (status == 0) return dataset;
    }
    dataset_close(dataset);
    on_one_line(error);
    return NULL;
}

void dataset_close(Dataset *dataset)
{
    if (!dataset) return;
    for (size_t i = 0; i < dataset->n_sources; i++) {
        mapped_file_close(&dataset->sources[i].file[0]);
        mapped_file_close(&dataset->sources[i].file[1]);
        free(dataset->sources[i].header_line);
        free(dataset->sources[i].names);
    }
    free(dataset->sources);
    free(dataset->index);
    free(dataset);
}

size_t dataset_count(const Dataset *dataset)
{
    return dataset->count;
}

int dataset_get(const Dataset *dataset, size_t number, Example *out, Error *error)
{
    size_t left = number % dataset->stride;
    Place from, place;
    RawRow row;
    int status = 0;
    *out = (Example){0};
    if (number >= dataset->count)
        return error_set(error, EXIT_FAILED, "%.700s: no row %zu in it (it has %zu)", dataset->sources[0].file[0].path,
                         number, dataset->count);
    from = place = dataset->index[number / dataset->stride];
    while ((status = next_row(dataset, &place, &row, error)) > 0) {
        status = row_counts(dataset, &row, false, error);
        if (status > 0 && left-- == 0) status = row_example(dataset, &row, out, error) == 0 ? 2 : -1;
        if (status < 0 || status == 2) break;
    }
    forget_between(dataset, &from, &place);
    if (status == 2) return 0;
    if (status == 0) error_set(error, EXIT_FAILED, "%.700s: has changed", dataset->sources[0].file[0].path);
    return on_one_line(error);
}
