/* metrics.h: the scores of the paper, equal to the programs that define them (T5's qa_utils, sacrebleu, rouge_score).
 * All scores are on 0..100. */
#ifndef PROMOT_METRICS_H
#define PROMOT_METRICS_H

#include <stddef.h>

#include "error.h"

typedef enum {
    METRIC_ACCURACY, METRIC_TRIVIA_EM, METRIC_TRIVIA_F1, METRIC_SQUAD_EM, METRIC_SQUAD_F1, METRIC_BLEU, METRIC_BLEU_13A,
    METRIC_ROUGE1, METRIC_ROUGE2, METRIC_ROUGEL, METRIC_ROUGELSUM, METRIC_COUNT
} Metric;

const char *metric_name(Metric metric);                 /* "accuracy", "trivia-em", … as on the command line */
int metric_by_name(Metric *metric, const char *name);   /* -1 when there is no such metric */

/* The accepted answers (or reference texts) of one prediction; count >= 1. */
typedef struct {
    const char *const *texts;
    size_t count;
} References;

typedef struct {
    double score;
    size_t n;
    double precisions[4], bp;           /* BLEU (precisions in percent) */
    size_t sys_len, ref_len;            /* BLEU */
    double precision, recall, fmeasure; /* ROUGE: the means, 0..100 */
} MetricResult;

/* The corpus score of n >= 1 predictions. Errors: no memory only; the texts are valid UTF-8. */
int metric_compute(Metric metric, const char *const *predictions, const References *references, size_t n,
                   MetricResult *result, Error *error);

/* The score of one pair, 0..100: what predictions files record (for BLEU: sentence score with the corpus' rule). */
double metric_one(Metric metric, const char *prediction, const References *references);

#endif
