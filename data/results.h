/* results.h: tables over several results of `promot eval --out DIR`.
 *
 * results.json: {"tasks": {NAME: {"metric", "n", "scores": {SHOTS: score},
 *                                "spread": {SHOTS: {"sd", "draws": [score]}}}}, "norm_avg": {SHOTS: score},
 *                "norm_avg_spread": as "spread"}
 * The spreads are there when several draws of the worked examples were evaluated. */
#ifndef PROMOT_RESULTS_H
#define PROMOT_RESULTS_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "error.h"

typedef enum { TABLE_TEXT, TABLE_CSV, TABLE_MARKDOWN } TableFormat;

/* The paper's Table 3: a block for each number of shots, a row for each run, a column for each task (in first-seen
 * order), Norm. Avg. last. A score that a run lacks is "-". With a spread: mean ± sd. results[i] is the parsed
 * results.json of run i, labels[i] its name. To be freed; NULL: no memory.
 * CSV is one table with the columns shots, run, tasks, norm_avg; a lacking score is empty, NAME_sd follows NAME if any
 * run has a spread there; quoted as RFC 4180 says, but with Unix line ends. */
char *results_compare(const cJSON *const *results, const char *const *labels, size_t count, TableFormat format);

/* DIRECTORY/results.json (or the file itself), checked. EXIT_USAGE when it is not there, EXIT_FAILED when it is not the
 * results of an evaluation. *out is to be freed with cJSON_Delete; NULL on failure. */
int results_read(const char *directory, cJSON **out, Error *error);

#endif
