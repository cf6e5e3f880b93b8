/* tasks_internal.h: what the parts of a task share: tasks.c (the table of the tasks), task_rows.c (from a row to an
 * example), dataset_files.c (the files of a split) and dataset.c (their rows). Not for anybody else. */
#ifndef PROMOT_TASKS_INTERNAL_H
#define PROMOT_TASKS_INTERNAL_H

#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "tasks.h"
#include "text_buffer.h"

/* ----------------------------------------------------------------------------------------------------- descriptions */

/* A row of a data file and where it came from. */
typedef struct {
    cJSON *fields;
    const char *file;
    size_t line;
} Row;

/* A label as the files store it, and the word that the model says; a NULL word: rows with that label are left out. */
typedef struct {
    const char *stored, *word;
} Label;

enum { MAX_SUFFIXES = 3 };

/* How a set of pairs is stored in two files side by side, line N of one belonging to line N of the other. */
typedef struct {
    const char *fields[2];                 /* the fields that the two sides are in a row; NULL: not a set of pairs */
    const char *suffixes[MAX_SUFFIXES][2]; /* NAME.en and NAME.fr, for instance; the first pair of them that is there */
    bool sentences; /* as in translation: TSV needs no header, and a row with an empty side is left out */
} Pair;

/* One task. Its answer is either a label word (labels, label_field) or text (target). All strings are borrowed: from
 * the table in tasks.c, or from the JSON of an own task. Wherever a field is named, "a|b" stands for the first of both
 * that a row has, and "a.b" for the field b of the object a (or, where b is a number, for an item of the list a). */
typedef struct {
    const char *name, *template;
    const char *target;      /* template of the answer; NULL when the answer is a label word */
    const char *accepted;    /* field with further accepted answers, or NULL; "field|" may be missing */
    const char *label_field; /* where the label is */
    const Label *labels;
    size_t n_labels;
    size_t n_numbered; /* so many of the labels, from the first on, are also known by number */
    Metric metric;
    const char *prefix; /* where a made-up next example begins: outputs are cut there; NULL: never */
    size_t max_input;
    bool strip;                                   /* takes blanks off both ends of fields and answers */
    int (*rewrite)(const Row *row, Error *error); /* adds to a row the fields that the templates name, or NULL */
    const char *rows_key;                         /* where the rows of a JSON object of rows are, or NULL */
    Pair pair;
    const char *file_prefix; /* put in front of "train.jsonl" by those who distribute the set, or NULL */
    const char *stems[3];    /* [Split]: the set's own file names, without endings: see dataset_files.c; or NULL */
    const char *files[3];    /* [Split]: the split files of an own task, or NULL */
    bool scored_on_dev;      /* the test split has no public answers */
} TaskSpec;

struct Task {
    TaskSpec spec;
    const char **words; /* the distinct label words */
    size_t n_words;
    Label *own_labels; /* spec.labels of an own task; NULL for a built-in one */
    cJSON *json;       /* the file of an own task: the strings of spec point into it */
};

/* ----------------------------------------------------------------------------------------------- rows (task_rows.c) */

/* The number of {field} places in a template, or -1 when it is malformed. */
int template_places(const char *template);

/* Makes the example of a row, to which fields may be added: 0, or 1 when the row is to be left out. Unless 0, nothing
 * is left to free. */
int example_from_row(const Task *task, const Row *row, Example *example, Error *error);
bool task_leaves_out_rows(const Task *task); /* example_from_row may return 1 */

/* Parses a JSON object; `line` is the number of its first line. NULL: error. */
cJSON *json_object(const char *json, const char *file, size_t line, Error *error);

/* What a JSON value is, in the words of our errors. */
const char *json_kind(const cJSON *value);

/* The rewriters of the table. */
int openbookqa_fields(const Row *row, Error *error);
int webquestions_fields(const Row *row, Error *error);

/* -------------------------------------------------------------------------------- a split's files (dataset_files.c) */

/* The files of a split, in order; the second one of each is NULL unless two go side by side. */
typedef struct {
    char *(*paths)[2];
    size_t count;
} SplitFiles;

int split_files_find(SplitFiles *files, const TaskSpec *spec, const char *path, Split split, Error *error);
void split_files_free(SplitFiles *files);
bool name_ends_with(const char *name, const char *end);

/* ------------------------------------------------------------------------------------------------------------- text */

/* A copy as a C string, to be freed; NULL: no memory. */
static inline char *text_copy(const char *data, size_t length)
{
    TextBuffer text = {0};
    text_put_bytes(&text, data, length);
    return text_take(&text);
}

/* Cuts blanks (ASCII white space) off both ends of [*from, *to). */
static inline void text_trim(const char **from, const char **to)
{
    static const char blanks[] = " \t\n\v\f\r";
    while (*from < *to && strchr(blanks, **from) && **from) ++*from;
    while (*from < *to && strchr(blanks, (*to)[-1]) && (*to)[-1]) --*to;
}

/* Returns -1, like error_set. */
static inline int out_of_memory(Error *error, const char *file)
{
    return error_set(error, EXIT_FAILED, "%.700s: out of memory", file);
}

/* An error may quote the file's own words, which may hold a line break; it must stay one line. Returns -1. */
static inline int on_one_line(Error *error)
{
    for (char *p = error->text; *p; p++) {
        if ((unsigned char)*p < 0x20) *p = ' ';
    }
    return -1;
}

#endif
