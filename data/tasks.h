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
void example_free(Example *example); /* what it holds; it is then empty */

/* A task: how a row of its files becomes an example, and how an output becomes a score. */
typedef struct Task Task;
Task *task_builtin(const char *name, Error *error);        /* "rte", "cb", …; EXIT_USAGE with the list of names otherwise */
Task *task_from_file(const char *path, Error *error);      /* an own task: a JSON file */
void task_free(Task *task);
const char *task_name(const Task *task);
Metric task_metric(const Task *task);
bool task_is_classification(const Task *task);             /* has label words */
size_t task_labels(const Task *task, const char *const **words); /* the label words, e.g. {"True", "False"} */
size_t task_max_input(const Task *task);                   /* ids at which the paper cuts inputs; 0: nowhere */

/* TEST is the split on which the paper scores a task (its table 8): the dev split where the answers of the test split
 * are not public. */
typedef enum { SPLIT_TRAIN, SPLIT_DEV, SPLIT_TEST } Split;

/* One split of a task. Its rows stay on disk and come one at a time, by number, so that fifteen million of them cost
 * no more memory than a few. Open checks every row once: a malformed one is an error that names file and line
 * (EXIT_USAGE). path: the directory of the data set (a split's files are found by their usual names), or a file. */
typedef struct Dataset Dataset;
Dataset *dataset_open(const Task *task, const char *path, Split split, Error *error); /* the task must outlive it */
void dataset_close(Dataset *dataset);                 /* NULL is fine */
size_t dataset_count(const Dataset *dataset);         /* the rows that count: >= 1; those left out do not */
int dataset_get(const Dataset *dataset, size_t number, Example *out, Error *error); /* to be freed: example_free */

/* k worked examples in front of an input, as the encoder sees it: "INPUT ANSWER SEPARATOR INPUT ANSWER SEPARATOR INPUT". To be freed. */
char *few_shot_input(const Example *const *shots, size_t n_shots, const Example *query, const char *separator);

/* What is scored: the text after <extra_id_0> and before <extra_id_1>, cut at a second occurrence of the template's prefix;
 * for classes the first word, as a label word when it is one. To be freed. */
char *task_postprocess(const Task *task, const char *raw_output);

#endif
