/* tasks.h: tasks as text: templates, readers of the data sets as they are distributed, few-shot inputs, post-processing. */
#ifndef PROMOT_TASKS_H
#define PROMOT_TASKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "metrics.h"

/* One example, already in the words of the task's template. */
typedef struct {
    char *id;
    char *input;       /* the filled template */
    char **targets;    /* accepted answers, the first one is trained on */
    size_t n_targets;
} Example;

typedef struct {
    Example *items;
    size_t count;
} Examples;
void examples_free(Examples *examples);

/* A task: how a row of its files becomes an example, and how an output becomes a score. */
typedef struct Task Task;
Task *task_builtin(const char *name, Error *error);        /* "rte", "cb", …; EXIT_USAGE with the list of names otherwise */
Task *task_from_file(const char *path, Error *error);      /* an own task: a JSON file */
void task_free(Task *task);
const char *task_name(const Task *task);
Metric task_metric(const Task *task);
bool task_is_classification(const Task *task);             /* has label words */
size_t task_labels(const Task *task, const char *const **words); /* the label words, e.g. {"True", "False"} */

typedef enum { SPLIT_TRAIN, SPLIT_DEV } Split;

/* Reads one split. path: the directory of the data set (splits are found by their usual names) or the split's file.
 * limit 0: all. Malformed rows are errors that name file and line (EXIT_USAGE). */
int task_read(const Task *task, const char *path, Split split, size_t limit, Examples *out, Error *error);

/* k worked examples in front of an input, as the encoder sees it: "INPUT ANSWER SEPARATOR INPUT ANSWER SEPARATOR INPUT". To be freed. */
char *few_shot_input(const Example *const *shots, size_t n_shots, const Example *query, const char *separator);

/* What is scored: the text after <extra_id_0> and before <extra_id_1>, cut at a second occurrence of the template's prefix;
 * for classes the first word, as a label word when it is one. To be freed. */
char *task_postprocess(const Task *task, const char *raw_output);

#endif
