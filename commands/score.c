/* score.c: promot score: a metric on files. A part of chapter 10 of promot.c, which includes it. */

/* One line of a .jsonl: a JSON list of texts. */
static int parse_reference_list(const char *line, const char *path, size_t number, References *out, Error *error)
{
    cJSON *json = cJSON_ParseWithOpts(line, NULL, true); /* true: nothing may follow the list */
    const cJSON *item;
    const char **texts;
    if (!cJSON_IsArray(json) || cJSON_GetArraySize(json) == 0) {
        cJSON_Delete(json);
        return error_set(error, EXIT_USAGE, "%s:%zu: expected a JSON list of one or more texts, found %.40s", path,
                         number, line);
    }
    texts = host_alloc((size_t)cJSON_GetArraySize(json), sizeof *texts);
    *out = (References){.texts = texts};
    cJSON_ArrayForEach(item, json)
    {
        if (!cJSON_IsString(item)) {
            cJSON_Delete(json);
            return error_set(error, EXIT_USAGE, "%s:%zu: expected texts in the list, found %.40s", path, number, line);
        }
        texts[out->count++] = text_format("%s", item->valuestring);
    }
    cJSON_Delete(json);
    return 0;
}

static int read_references(const char *path, const Lines *lines, References *out, Error *error)
{
    const char *dot = strrchr(path, '.');
    bool lists = dot && strcmp(dot, ".jsonl") == 0;
    for (size_t i = 0; i < lines->count; i++) {
        const char **texts;
        if (lists) {
            if (parse_reference_list(lines->text[i], path, i + 1, &out[i], error)) return -1;
            continue;
        }
        texts = host_alloc(1, sizeof *texts);
        texts[0] = text_format("%s", lines->text[i]);
        out[i] = (References){texts, 1};
    }
    return 0;
}

static void score_print(const Options *o, Metric metric, const MetricResult *r)
{
    cJSON *json;
    if (!option_true(o, OPT_JSON)) {
        printf("%s %.4f\n", metric_name(metric), r->score);
        return;
    }
    json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "metric", metric_name(metric));
    cJSON_AddNumberToObject(json, "score", r->score);
    cJSON_AddNumberToObject(json, "n", (double)r->n);
    if (metric == METRIC_BLEU || metric == METRIC_BLEU_13A) {
        cJSON_AddItemToObject(json, "precisions", cJSON_CreateDoubleArray(r->precisions, 4));
        cJSON_AddNumberToObject(json, "bp", r->bp);
        cJSON_AddNumberToObject(json, "sys_len", (double)r->sys_len);
        cJSON_AddNumberToObject(json, "ref_len", (double)r->ref_len);
    } else if (metric >= METRIC_ROUGE1 && metric <= METRIC_ROUGELSUM) {
        cJSON_AddNumberToObject(json, "precision", r->precision);
        cJSON_AddNumberToObject(json, "recall", r->recall);
        cJSON_AddNumberToObject(json, "fmeasure", r->fmeasure);
    }
    print_json(json);
}

static int score_files(const Options *o, Metric metric, const Lines *predictions, const Lines *reference_lines,
                       Error *error)
{
    References *references = host_alloc(reference_lines->count, sizeof *references);
    MetricResult result;
    int status = 0;
    if (predictions->count != reference_lines->count)
        status = error_set(error, EXIT_USAGE, "%s: lines (expected %zu as in %s, found %zu)", o->text[OPT_REFERENCES],
                           predictions->count, o->text[OPT_PREDICTIONS], reference_lines->count);
    else if (predictions->count == 0)
        status = error_set(error, EXIT_USAGE, "%s: expected a prediction a line, found an empty file",
                           o->text[OPT_PREDICTIONS]);
    if (!status) status = read_references(o->text[OPT_REFERENCES], reference_lines, references, error);
    if (!status)
        status = metric_compute(metric, (const char *const *)predictions->text, references, predictions->count, &result,
                                error);
    if (!status) score_print(o, metric, &result);
    for (size_t i = 0; i < reference_lines->count; i++) {
        for (size_t k = 0; k < references[i].count; k++) free((char *)references[i].texts[k]);
        free((void *)references[i].texts);
    }
    free(references);
    return status;
}

static int command_score(Options *o, Error *error)
{
    Lines predictions, references;
    Metric metric;
    int status;
    if (option_need(o, OPT_METRIC, error) || option_need(o, OPT_PREDICTIONS, error) ||
        option_need(o, OPT_REFERENCES, error))
        return -1;
    if (metric_by_name(&metric, o->text[OPT_METRIC]))
        return error_set(error, EXIT_USAGE, "--metric: expected %s, found %s", option_table[OPT_METRIC].help,
                         o->text[OPT_METRIC]);
    if (lines_read(&predictions, o->text[OPT_PREDICTIONS], error)) return -1;
    if (lines_read(&references, o->text[OPT_REFERENCES], error)) {
        lines_free(&predictions);
        return -1;
    }
    status = score_files(o, metric, &predictions, &references, error);
    lines_free(&predictions);
    lines_free(&references);
    return status;
}
