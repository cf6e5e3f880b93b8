/* study_report.h: the report of `promot study`, written from its results.json and from nothing else.
 *
 * results.json. A *number* below is {"mean", "sd", "values": [one for each seed]}; sd is over seeds, 0 with one seed.
 *   "seeds"       how many; "model" the pretrained model's directory; "settings" {NAME: text}, what was asked for
 *   "target"      the trained task: {"name", "metric", "n", "labels": [its words]}
 *   "heldout"     the tasks of the average: [{"name", "metric", "n", "about" (a few words, may be absent)}];
 *                 "related": one more of the same form
 *   "methods"     {METHOD: {"label", "target": {SHOTS: number}, after the last step, with the prompt if there is one
 *                           "heldout": {SHOTS: number},      mean over the held-out tasks, without the prompt
 *                           "format_ratio": {SHOTS: number}, percent of those answers that are label words
 *                           "tasks": {NAME: {SHOTS: number}}, the related task too
 *                           "task_format_ratio": {NAME: {SHOTS: number}},
 *                           "first": {"step": number, "target", "heldout", "format_ratio"}}} by shots, at the first
 *                 checkpoint whose dev accuracy is at least "first_rule" (99); absent for methods without checkpoints.
 *                 In the order of the table. METHOD is pretrained, finetune, prompt, promot and, in the full study,
 *                 random-prompt, joint, paper-finetune, paper-promot (the paper's own settings).
 *   "context"     of the pretrained model: {"examples_of": NAME, "own": number, "other": number}: the mean over the
 *                 held-out tasks but NAME at 1 shot, with an example of the task itself and with one of NAME
 *   "curves"      {METHOD: {"step": [x], "dev": [number], "target": {SHOTS: [number]}, "heldout": {SHOTS: [number]},
 *                           "format_ratio": {SHOTS: [number]}, "qa_format_ratio": {SHOTS: [number]} (closed-book
 *                 questions alone; may be absent)}}: along training, step 0 first. dev: the trained task as it is
 *                 trained, on all its dev rows, null at step 0. All else is of the first "curve_rows" rows of each
 *                 task: dev rows of the trained one, test rows of the others, null for prompt tuning, which leaves
 *                 them as they are.
 *   "alignment"   {"step": [x], "without_prompt": {"cosine": [number], "full_norm": [number], "format_norm": [number]},
 *                 "with_prompt": the same}: the gradient on the task against the one on random labels, along ProMoT's
 *                 second stage
 *   "samples"     [{"task", "input", "target", "outputs": {METHOD: text}}]: the first test row of each held-out task at
 *                 1 shot, after the first seed
 *   "bases"       [{"model", "seeds", "methods"}]: the same study on further pretrained models; may be empty
 *   "finding"     the result in a sentence; "checks": [{"what", "value", "limit", "ok"}] texts, and a boolean
 *   "commands"    [text]: the promot commands of the first seed */
#ifndef PROMOT_STUDY_REPORT_H
#define PROMOT_STUDY_REPORT_H

#include <cjson/cJSON.h>

#include "error.h"

/* Writes DIRECTORY/report.html (one page without scripts or network; light or dark as the reader's screen is), its
 * figures beside it (NAME.svg, .csv, .json) and overview.svg, the picture that a README can show. */
int study_report_write(const char *directory, const cJSON *results, Error *error);

/* The methods, mean ± sd, and what they do to each task, as tables of text for a terminal. To be freed; NULL: no
 * memory. */
char *study_table(const cJSON *results);

#endif
