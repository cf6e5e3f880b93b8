/* study_results.c: what promot study found: from the files that its commands wrote to results.json, whose form
 * data/study_report.h describes. A part of chapter 10 of promot.c, which includes it. */

/* --- numbers over seeds */

/* Appends x to the number NAME of an object: {"values": [one for each seed]}. What is not a number is left out. */
static void add_value(cJSON *object, const char *name, double x)
{
    cJSON *number = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!isfinite(x)) return;
    if (!number) cJSON_AddArrayToObject(number = cJSON_AddObjectToObject(object, name), "values");
    cJSON_AddItemToArray(cJSON_GetObjectItemCaseSensitive(number, "values"), cJSON_CreateNumber(x));
}

/* The object NAME of an object, made if it is not there. */
static cJSON *object_at(cJSON *object, const char *name)
{
    cJSON *child = cJSON_GetObjectItemCaseSensitive(object, name);
    return child ? child : cJSON_AddObjectToObject(object, name);
}

/* The number at a place of the array NAME; places are filled in order. */
static void add_value_at(cJSON *object, const char *name, int place, double x)
{
    cJSON *array = cJSON_GetObjectItemCaseSensitive(object, name), *number;
    if (!array) array = cJSON_AddArrayToObject(object, name);
    while (cJSON_GetArraySize(array) <= place) {
        cJSON_AddItemToArray(array, number = cJSON_CreateObject());
        cJSON_AddArrayToObject(number, "values");
    }
    if (isfinite(x))
        cJSON_AddItemToArray(cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(array, place), "values"),
                             cJSON_CreateNumber(x));
}

/* Gives every number its mean and its standard deviation over the seeds (n - 1 below; 0 of one seed). A number without
 * values becomes null. */
static void finish_numbers(cJSON *json)
{
    cJSON *child = json->child, *next;
    for (; child; child = next) {
        cJSON *values = cJSON_GetObjectItemCaseSensitive(child, "values"), *value;
        double n = cJSON_GetArraySize(values), mean = 0, squares = 0;
        next = child->next;
        if (!cJSON_IsArray(values)) {
            finish_numbers(child);
        } else if (n == 0) {
            if (cJSON_IsObject(json))
                cJSON_ReplaceItemInObjectCaseSensitive(json, child->string, cJSON_CreateNull());
            else
                cJSON_ReplaceItemViaPointer(json, child, cJSON_CreateNull());
        } else {
            cJSON_ArrayForEach(value, values) mean += value->valuedouble / n;
            cJSON_ArrayForEach(value, values) squares += (value->valuedouble - mean) * (value->valuedouble - mean);
            cJSON_AddNumberToObject(child, "mean", mean);
            cJSON_AddNumberToObject(child, "sd", n > 1 ? sqrt(squares / (n - 1)) : 0);
        }
    }
}

/* The trained task's own numbers are those without worked examples: they stand beside those by their number too. */
static void add_target_numbers(const cJSON *methods)
{
    const cJSON *method;
    cJSON_ArrayForEach(method, methods)
    {
        cJSON *target = cJSON_GetObjectItemCaseSensitive(method, "target");
        const cJSON *asked_plainly = cJSON_GetObjectItemCaseSensitive(target, "0");
        if (!cJSON_IsObject(asked_plainly)) continue;
        cJSON_AddNumberToObject(target, "mean", record_number(asked_plainly, "mean"));
        cJSON_AddNumberToObject(target, "sd", record_number(asked_plainly, "sd"));
    }
}

/* The number at the end of a path of names, its mean; NAN: there is none. */
static double mean_at(const cJSON *json, const char *const *path)
{
    for (; *path && json; path++) json = cJSON_GetObjectItemCaseSensitive(json, *path);
    return json ? record_number(json, "mean") : NAN;
}
#define MEAN_AT(json, ...) mean_at(json, (const char *const[]){__VA_ARGS__, NULL})

/* --- reading what the commands wrote */

/* A number that a command must have written. */
static int need_number(const cJSON *object, const char *name, const char *place, double *out, Error *error)
{
    *out = record_number(object, name);
    return isfinite(*out) ? 0 : error_set(error, EXIT_FAILED, "%s: %s is not there, or no number", place, name);
}

/* The predictions of a task, a JSON object a line. */
static int read_predictions(const char *place, const char *task, const char *shots, Lines *lines, Error *error)
{
    char *path = text_format("%s/predictions/%s.%s.jsonl", place, task, shots);
    int status = lines_read(lines, path, error);
    free(path);
    return status;
}

/* The percentage of a task's answers that are label words of the trained one. rows: as many as were evaluated. */
static int read_format_ratio(const char *place, const char *task, const char *shots, const Task *trained, double rows,
                             double *ratio, Error *error)
{
    Lines lines;
    size_t in_format = 0;
    int status = read_predictions(place, task, shots, &lines, error);
    if (status) return status;
    if ((double)lines.count != rows)
        status = error_set(error, EXIT_FAILED, "%s/predictions/%s.%s.jsonl: %zu lines (expected %.0f)", place, task,
                           shots, lines.count, rows);
    for (size_t i = 0; !status && i < lines.count; i++) {
        cJSON *row = cJSON_Parse(lines.text[i]);
        const char *answer = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(row, "processed_output"));
        if (answer)
            in_format += is_in_format(trained, answer);
        else
            status = error_set(error, EXIT_FAILED, "%s/predictions/%s.%s.jsonl:%zu: no prediction", place, task, shots,
                               i + 1);
        cJSON_Delete(row);
    }
    *ratio = rows > 0 ? 100.0 * (double)in_format / rows : NAN;
    lines_free(&lines);
    return status;
}

/* One task of an evaluation: its score and its format ratio. */
static int add_heldout_task(const char *place, const cJSON *results, const char *name, const char *shots,
                            const Task *trained, cJSON *into, double *ratio, Error *error)
{
    const cJSON *task = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(results, "tasks"), name);
    double score, rows;
    char *what = text_format("%s/results.json: %s", place, name);
    int status = need_number(task, "n", what, &rows, error);
    if (!status) status = need_number(cJSON_GetObjectItemCaseSensitive(task, "scores"), shots, what, &score, error);
    if (!status) status = read_format_ratio(place, name, shots, trained, rows, ratio, error);
    if (!status) {
        add_value(object_at(object_at(into, "tasks"), name), shots, score);
        add_value(object_at(object_at(into, "task_format_ratio"), name), shots, *ratio);
    }
    free(what);
    return status;
}

/* An evaluation of the held-out tasks: one seed more of heldout, format_ratio, tasks, task_format_ratio. */
static int add_heldout(const char *place, const Task *trained, cJSON *into, Error *error)
{
    cJSON *results, *scores;
    const cJSON *averages;
    int status = read_json(place, "results.json", &results, error);
    averages = cJSON_GetObjectItemCaseSensitive(results, "norm_avg");
    if (!status && !cJSON_GetArraySize(averages))
        status = error_set(error, EXIT_FAILED, "%s/results.json: norm_avg is not there", place);
    cJSON_ArrayForEach(scores, averages)
    {
        const char *shots = scores->string ? scores->string : "";
        double average, mean_ratio = 0;
        if (!status) status = need_number(averages, shots, place, &average, error);
        for (size_t i = 0; !status && i < N_STUDY_TASKS; i++) {
            double ratio = NAN;
            status = add_heldout_task(place, results, STUDY_TASKS[i].name, shots, trained, into, &ratio, error);
            if (i < N_HELDOUT) mean_ratio += ratio / N_HELDOUT;
        }
        if (status) break;
        add_value(object_at(into, "heldout"), shots, average);
        add_value(object_at(into, "format_ratio"), shots, mean_ratio);
    }
    cJSON_Delete(results);
    return status;
}

/* An evaluation of the trained task: one seed more of target. */
static int add_target(const char *place, cJSON *into, Error *error)
{
    cJSON *results;
    const cJSON *scores, *score;
    double value;
    int status = read_json(place, "results.json", &results, error);
    scores = cJSON_GetObjectItemCaseSensitive(
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(results, "tasks"), "rte"), "scores");
    if (!status) status = need_number(scores, "0", place, &value, error);
    cJSON_ArrayForEach(score, scores)
    {
        if (!status) status = need_number(scores, score->string ? score->string : "", place, &value, error);
        if (!status) add_value(object_at(into, "target"), score->string, value);
    }
    cJSON_Delete(results);
    return status;
}

/* What a record of the log says of all tasks, at a place of the curves of its number of worked examples. */
static void add_probe(cJSON *curve, const cJSON *record, double shots, int place)
{
    const cJSON *closed_book =
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(record, "probe"), STUDY_TASKS[0].name);
    char *name = text_format("%.0f", shots);
    add_value_at(object_at(curve, "target"), name, place, record_number(record, "trained_mean"));
    add_value_at(object_at(curve, "heldout"), name, place, record_number(record, "mean"));
    add_value_at(object_at(curve, "format_ratio"), name, place, record_number(record, "format_ratio"));
    add_value_at(object_at(curve, "qa_format_ratio"), name, place, record_number(closed_book, "format_ratio"));
    free(name);
}

/* Along training: one seed's dev scores and probes, from the log of its run. The probes of a step are a record for each
 * number of worked examples. */
static int add_curves(const char *run, cJSON *curve, Error *error)
{
    char *path = path_join(run, "log.jsonl");
    Lines lines;
    int status = lines_read(&lines, path, error), place = -1;
    cJSON *steps = cJSON_GetObjectItemCaseSensitive(curve, "step");
    bool first = !steps;
    double dev = NAN, last = NAN;
    if (!status && first) steps = cJSON_AddArrayToObject(curve, "step");
    for (size_t i = 0; !status && i < lines.count; i++) { /* study_rules has seen that all of them are JSON */
        cJSON *record = cJSON_Parse(lines.text[i]);
        const bool asks =
            cJSON_GetObjectItemCaseSensitive(record, "probe") || cJSON_GetObjectItemCaseSensitive(record, "trained");
        double step = record_number(record, "step"), shots;
        if (cJSON_GetObjectItemCaseSensitive(record, "dev")) dev = record_number(record, "mean");
        if (asks && !(status = need_number(record, "shots", path, &shots, error))) {
            if (step != last) {
                place++;
                if (first) cJSON_AddItemToArray(steps, cJSON_CreateNumber(step));
                add_value_at(curve, "dev", place, dev);
            }
            add_probe(curve, record, shots, place);
            last = step;
        }
        cJSON_Delete(record);
    }
    lines_free(&lines);
    free(path);
    return status;
}

/* One seed of a method: the last step, and the first checkpoint that has learnt the task. */
static int add_method_seed(const Study *s, StudyMethod m, size_t base, size_t seed, const Task *trained, cJSON *into,
                           Error *error)
{
    StudyMethod asked = m == PROMPT_TUNING ? PRETRAINED : m; /* without its prompt that is the pretrained model */
    char *run = study_place(s, TRAIN, m, base, seed), *target = study_place(s, TARGET, m, base, seed),
         *heldout = study_place(s, HELDOUT, asked, base, seed),
         *first_target = study_place(s, FIRST_TARGET, m, base, seed),
         *first_heldout = study_place(s, FIRST_HELDOUT, m, base, seed);
    double last, first = NAN;
    int status = add_target(target, into, error);
    if (!status) status = add_heldout(heldout, trained, into, error);
    if (!status && STUDY_METHODS[m].tunes_model) status = study_rules(run, &last, &first, error);
    if (!status && isfinite(first)) {
        cJSON *rule = object_at(into, "first");
        add_value(rule, "step", first);
        status = add_target(first_target, rule, error);
        if (!status) status = add_heldout(first_heldout, trained, rule, error);
    }
    free(first_heldout);
    free(first_target);
    free(heldout);
    free(target);
    free(run);
    return status;
}

/* "methods" of one base. */
static int add_methods(const Study *s, size_t base, const Task *trained, cJSON *into, Error *error)
{
    cJSON *methods = cJSON_AddObjectToObject(into, "methods");
    int status = 0;
    for (StudyMethod m = 0; !status && m < N_METHODS; m++) {
        cJSON *method;
        if (STUDY_METHODS[m].full && (!s->full || base)) continue;
        method = cJSON_AddObjectToObject(methods, STUDY_METHODS[m].name);
        cJSON_AddStringToObject(method, "label", STUDY_METHODS[m].label);
        for (size_t seed = 0; !status && seed < s->n_seeds; seed++)
            status = add_method_seed(s, m, base, seed, trained, method, error);
    }
    return status;
}

/* --- the other parts of results.json */

/* How much of the pretrained model's skill is in the example: that of the task itself, and one of another task. */
static int add_context(const Study *s, cJSON *json, Error *error)
{
    cJSON *context = cJSON_AddObjectToObject(json, "context");
    int status = 0;
    cJSON_AddStringToObject(context, "examples_of", STUDY_EXAMPLES_OF);
    for (size_t seed = 0; !status && seed < s->n_seeds; seed++) {
        static const StudyPart PARTS[2] = {HELDOUT, OTHER_EXAMPLES};
        for (int p = 0; !status && p < 2; p++) {
            char *place = study_place(s, PARTS[p], PRETRAINED, 0, seed);
            cJSON *results, *tasks;
            double mean = 0;
            status = read_json(place, "results.json", &results, error);
            tasks = cJSON_GetObjectItemCaseSensitive(results, "tasks");
            for (size_t i = 0; i < N_HELDOUT; i++)
                if (strcmp(STUDY_TASKS[i].name, STUDY_EXAMPLES_OF) != 0)
                    mean += record_number(cJSON_GetObjectItemCaseSensitive(
                                              cJSON_GetObjectItemCaseSensitive(tasks, STUDY_TASKS[i].name), "scores"),
                                          "1") /
                            (N_HELDOUT - 1);
            add_value(context, p ? "other" : "own", mean);
            cJSON_Delete(results);
            free(place);
        }
    }
    return status;
}

static int add_all_curves(const Study *s, cJSON *json, Error *error)
{
    cJSON *curves = cJSON_AddObjectToObject(json, "curves");
    int status = 0;
    for (StudyMethod m = 0; !status && m < N_METHODS; m++) {
        cJSON *curve;
        if (!STUDY_METHODS[m].train || (STUDY_METHODS[m].full && !s->full)) continue;
        curve = cJSON_AddObjectToObject(curves, STUDY_METHODS[m].name);
        for (size_t seed = 0; !status && seed < s->n_seeds; seed++) {
            char *run = study_place(s, TRAIN, m, 0, seed);
            status = add_curves(run, curve, error);
            free(run);
        }
        /* An earlier version's prompt tuning was not asked along its steps. */
        if (!cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(curve, "step")))
            cJSON_DeleteItemFromObjectCaseSensitive(curves, STUDY_METHODS[m].name);
    }
    return status;
}

/* Along ProMoT's second stage: cosines and norms of all weights' gradients together. */
static int add_alignment(const Study *s, cJSON *json, Error *error)
{
    static const char *const SIDES[] = {"without_prompt", "with_prompt"}, *const NUMBERS[] = {"cosine", "full_norm",
                                                                                              "format_norm"};
    cJSON *alignment = cJSON_AddObjectToObject(json, "alignment"), *steps = cJSON_AddArrayToObject(alignment, "step");
    int status = 0;
    for (size_t seed = 0; !status && seed < s->n_seeds; seed++) {
        char *place = study_place(s, ALIGN, PROMOT, 0, seed);
        cJSON *results, *point;
        double step;
        int at = 0;
        status = read_json(place, "align.json", &results, error);
        if (!status && !cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(results, "points")))
            status = error_set(error, EXIT_FAILED, "%s/align.json: points are not there", place);
        cJSON_ArrayForEach(point, cJSON_GetObjectItemCaseSensitive(results, "points"))
        {
            if (!status) status = need_number(point, "step", place, &step, error);
            if (status) break;
            if (seed == 0) cJSON_AddItemToArray(steps, cJSON_CreateNumber(step));
            for (int side = 0; side < 2; side++) {
                const cJSON *total = cJSON_GetObjectItemCaseSensitive(
                    cJSON_GetObjectItemCaseSensitive(point, SIDES[side]), module_name(MODULE_TOTAL));
                for (int n = 0; n < 3; n++)
                    add_value_at(object_at(alignment, SIDES[side]), NUMBERS[n], at, record_number(total, NUMBERS[n]));
            }
            at++;
        }
        cJSON_Delete(results);
        free(place);
    }
    return status;
}

/* The first test row of each task at one shot, as every method of the first seed answers it. */
static int add_samples(const Study *s, cJSON *json, Error *error)
{
    cJSON *samples = cJSON_AddArrayToObject(json, "samples");
    int status = 0;
    for (size_t i = 0; !status && i < N_STUDY_TASKS; i++) {
        const char *name = STUDY_TASKS[i].name;
        cJSON *sample = cJSON_CreateObject(), *outputs;
        cJSON_AddStringToObject(sample, "task", name);
        outputs = cJSON_CreateObject();
        for (StudyMethod m = 0; !status && m < N_METHODS; m++) {
            char *place = study_place(s, HELDOUT, m, 0, 0);
            Lines lines;
            cJSON *row;
            if (m != PROMPT_TUNING && (!STUDY_METHODS[m].full || s->full) &&
                !(status = read_predictions(place, name, "1", &lines, error))) {
                row = lines.count ? cJSON_Parse(lines.text[0]) : NULL;
                if (m == PRETRAINED) {
                    cJSON_AddItemToObject(sample, "input", cJSON_DetachItemFromObjectCaseSensitive(row, "input"));
                    cJSON_AddItemToObject(sample, "target", cJSON_DetachItemFromObjectCaseSensitive(row, "target"));
                }
                cJSON_AddItemToObject(outputs, STUDY_METHODS[m].name,
                                      cJSON_DetachItemFromObjectCaseSensitive(row, "processed_output"));
                cJSON_Delete(row);
                lines_free(&lines);
            }
            free(place);
        }
        cJSON_AddItemToObject(sample, "outputs", outputs);
        cJSON_AddItemToArray(samples, sample);
    }
    return status;
}

/* "target", "heldout", "related": names, metrics and sizes, from the evaluations of the first seed. */
static int add_tasks(const Study *s, const Task *trained, cJSON *json, Error *error)
{
    char *target = study_place(s, TARGET, PRETRAINED, 0, 0), *heldout = study_place(s, HELDOUT, PRETRAINED, 0, 0);
    const char *const *words;
    size_t n_words = task_labels(trained, &words);
    cJSON *results[2] = {NULL, NULL}, *list = cJSON_CreateArray();
    int status = read_json(target, "results.json", &results[0], error);
    if (!status) status = read_json(heldout, "results.json", &results[1], error);
    for (size_t i = 0; i < N_STUDY_TASKS + 1; i++) {
        const char *name = i < N_STUDY_TASKS ? STUDY_TASKS[i].name : "rte";
        const cJSON *row =
            cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(results[i <= N_HELDOUT], "tasks"), name);
        const char *metric = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(row, "metric"));
        cJSON *task = cJSON_CreateObject();
        cJSON_AddStringToObject(task, "name", name);
        cJSON_AddStringToObject(task, "metric", metric ? metric : "");
        cJSON_AddNumberToObject(task, "n", record_number(row, "n"));
        if (i < N_STUDY_TASKS) cJSON_AddStringToObject(task, "about", STUDY_TASKS[i].about);
        if (i < N_HELDOUT) cJSON_AddItemToArray(list, task);
        if (i == N_HELDOUT) cJSON_AddItemToObject(json, "related", task);
        if (i > N_HELDOUT) {
            cJSON_AddItemToObject(task, "labels", cJSON_CreateStringArray(words, (int)n_words));
            cJSON_AddItemToObject(json, "target", task);
        }
    }
    cJSON_AddItemToObject(json, "heldout", list);
    cJSON_Delete(results[0]);
    cJSON_Delete(results[1]);
    free(heldout);
    free(target);
    return status;
}

static int add_commands(const Study *s, cJSON *json, Error *error)
{
    char *path = path_join(s->out, "commands.sh");
    Lines lines;
    int status = lines_read(&lines, path, error);
    if (!status) { /* the first line is their heading */
        cJSON_AddItemToObject(json, "commands",
                              cJSON_CreateStringArray((const char *const *)lines.text + 1, (int)lines.count - 1));
        lines_free(&lines);
    }
    free(path);
    return status;
}

/* --- what it comes to */

/* The paper's expectations in numbers: what a study is held to. Percent, or points of a score. */
static const double ABLE = 60;             /* the pretrained model on held-out tasks after one example: at least */
static const double IN_CONTEXT = 65;       /* of that without examples, or with another task's: at most */
static const double LEARNT = 95;           /* plain fine-tuning on the trained task: at least */
static const double COLLAPSED = 65;        /* of the held-out score before, what is left: at most */
static const double KEPT = 95;             /* the same, at least */
static const double FORMAT_KEPT = 2;       /* answers in the trained format where the rest is kept: at most */
static const double BEHIND = 2;            /* points on the trained task that ProMoT may be behind: at most */
static const double AS_FINE_TUNING = 80;   /* of what fine-tuning loses, what a control loses: at least */
static const double BETTER_THAN_TOSS = 60; /* right answers of those in the format; two labels are right in 50 */

/* One expectation as a number and its bound: at_least, or else at most. A number that there is not (a checkpoint that
 * was never reached, a share of nothing) does not meet it. */
static void add_check(cJSON *checks, const char *base, const char *what, double value, bool at_least, double bound)
{
    cJSON *check = cJSON_CreateObject();
    char *text;
    cJSON_AddStringToObject(check, "what", text = text_format("%s%s", base, what));
    free(text);
    cJSON_AddStringToObject(check, "value", text = isfinite(value) ? text_format("%.2f", value) : text_format("none"));
    free(text);
    cJSON_AddStringToObject(check, "limit", text = text_format("%s %.2f", at_least ? "at least" : "at most", bound));
    free(text);
    cJSON_AddBoolToObject(check, "ok", isfinite(value) && (at_least ? value >= bound : value <= bound));
    cJSON_AddItemToArray(checks, check);
}

/* The second rule: ProMoT at the first checkpoint that has learnt the task, which every seed must come to. */
static void add_first_checks(cJSON *checks, const char *base, const cJSON *method, double before, size_t seeds)
{
    static const char *const WHAT[] = {"seeds that learn the task, percent",
                                       "first checkpoint that has learnt it: held-out tasks, percent of before",
                                       "first checkpoint that has learnt it: answers in the trained format, percent"};
    const char *label = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(method, "label"));
    const cJSON *first = cJSON_GetObjectItemCaseSensitive(method, "first"),
                *steps = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(first, "step"), "values");
    const double value[] = {100.0 * cJSON_GetArraySize(steps) / (double)seeds,
                            100 * MEAN_AT(first, "heldout", "1") / before, MEAN_AT(first, "format_ratio", "1")},
                 bound[] = {100, KEPT, FORMAT_KEPT};
    for (int i = 0; i < 3; i++) {
        char *what = text_format("%s: %s", label ? label : "", WHAT[i]);
        add_check(checks, base, what, value[i], i < 2, bound[i]);
        free(what);
    }
}

/* The main result, on one pretrained model. base: what stands in front of each check. */
static void add_main_checks(cJSON *checks, const char *base, const cJSON *m, const char *related, size_t seeds)
{
    double before = MEAN_AT(m, "pretrained", "heldout", "1"), tuned = MEAN_AT(m, "finetune", "target", "0");
    add_check(checks, base, "before tuning: held-out tasks, 1 shot", before, true, ABLE);
    add_check(checks, base, "before tuning: 0 shots, percent of 1 shot",
              100 * MEAN_AT(m, "pretrained", "heldout", "0") / before, false, IN_CONTEXT);
    add_check(checks, base, "fine-tuning: trained task", tuned, true, LEARNT);
    add_check(checks, base, "fine-tuning: held-out tasks, percent of before",
              100 * MEAN_AT(m, "finetune", "heldout", "1") / before, false, COLLAPSED);
    add_check(checks, base, "fine-tuning: answers in the trained format, closed-book questions' less the average",
              MEAN_AT(m, "finetune", "task_format_ratio", STUDY_TASKS[0].name, "1") -
                  MEAN_AT(m, "finetune", "format_ratio", "1"),
              true, 0);
    add_check(checks, base, "ProMoT: trained task, less fine-tuning's", MEAN_AT(m, "promot", "target", "0") - tuned,
              true, -BEHIND);
    add_check(checks, base, "ProMoT: held-out tasks, percent of before",
              100 * MEAN_AT(m, "promot", "heldout", "1") / before, true, KEPT);
    add_check(checks, base, "ProMoT: answers in the trained format, percent", MEAN_AT(m, "promot", "format_ratio", "1"),
              false, FORMAT_KEPT);
    add_first_checks(checks, base, cJSON_GetObjectItemCaseSensitive(m, "promot"), before, seeds);
    add_check(checks, base, "ProMoT: the related task, more than before",
              MEAN_AT(m, "promot", "tasks", related, "1") - MEAN_AT(m, "pretrained", "tasks", related, "1"), true, 1);
    add_check(checks, base, "ProMoT: the related task, percent right of its answers in the trained format",
              100 * MEAN_AT(m, "promot", "tasks", related, "1") /
                  MEAN_AT(m, "promot", "task_format_ratio", related, "1"),
              true, BETTER_THAN_TOSS);
    add_check(checks, base, "prompt tuning: trained task, less fine-tuning's",
              MEAN_AT(m, "prompt", "target", "0") - tuned, false, 0);
}

/* The controls of the full study: what a method loses of the held-out tasks, beside what fine-tuning loses. */
static void add_control_checks(cJSON *checks, const cJSON *m, size_t seeds)
{
    static const StudyMethod CONTROLS[] = {RANDOM_PROMPT, JOINT};
    double before = MEAN_AT(m, "pretrained", "heldout", "1"), lost = before - MEAN_AT(m, "finetune", "heldout", "1");
    const cJSON *papers = cJSON_GetObjectItemCaseSensitive(m, STUDY_METHODS[PAPER_PROMOT].name);
    for (int i = 0; i < 2; i++) {
        const char *name = STUDY_METHODS[CONTROLS[i]].name;
        char *what =
            text_format("%s: held-out tasks, lost in percent of fine-tuning's loss", STUDY_METHODS[CONTROLS[i]].label);
        if (cJSON_GetObjectItemCaseSensitive(m, name))
            add_check(checks, "", what, 100 * (before - MEAN_AT(m, name, "heldout", "1")) / lost, true, AS_FINE_TUNING);
        free(what);
    }
    if (!papers) return;
    add_check(checks, "", "fine-tuning, paper's settings: held-out tasks, percent of before",
              100 * MEAN_AT(m, "paper-finetune", "heldout", "1") / before, false, COLLAPSED);
    add_check(checks, "", "ProMoT, paper's settings: held-out tasks, percent of before",
              100 * MEAN_AT(papers, "heldout", "1") / before, true, KEPT);
    add_check(checks, "", "ProMoT, paper's settings: answers in the trained format, percent",
              MEAN_AT(papers, "format_ratio", "1"), false, FORMAT_KEPT);
    add_first_checks(checks, "", papers, before, seeds);
}

static void add_checks(cJSON *json, size_t seeds)
{
    const cJSON *m = cJSON_GetObjectItemCaseSensitive(json, "methods"),
                *context = cJSON_GetObjectItemCaseSensitive(json, "context"),
                *alignment = cJSON_GetObjectItemCaseSensitive(json, "alignment"), *without, *with, *base;
    cJSON *checks = cJSON_AddArrayToObject(json, "checks");
    const char *related = cJSON_GetStringValue(
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(json, "related"), "name"));
    int number = 2;
    without = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(alignment, "without_prompt"), "cosine");
    with = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(alignment, "with_prompt"), "cosine");
    add_main_checks(checks, "", m, related, seeds);
    add_check(checks, "", "before tuning: an example of another task, percent of its own",
              100 * MEAN_AT(context, "other") / MEAN_AT(context, "own"), false, IN_CONTEXT);
    add_control_checks(checks, m, seeds);
    add_check(checks, "", "gradient alignment without the prompt, first step",
              record_number(cJSON_GetArrayItem(without, 0), "mean"), true, 0.9);
    add_check(checks, "", "gradient alignment with the prompt, first step",
              record_number(cJSON_GetArrayItem(with, 0), "mean"), false, 0.5);
    cJSON_ArrayForEach(base, cJSON_GetObjectItemCaseSensitive(json, "bases"))
    {
        char *prefix = text_format("base %d, ", number++);
        add_main_checks(checks, prefix, cJSON_GetObjectItemCaseSensitive(base, "methods"), related, seeds);
        free(prefix);
    }
}

/* What one pretrained model's numbers come to. */
static const char *study_verdict(const cJSON *m)
{
    double before = MEAN_AT(m, "pretrained", "heldout", "1"), tuned = MEAN_AT(m, "finetune", "heldout", "1"),
           kept = MEAN_AT(m, "promot", "heldout", "1"), tuned_target = MEAN_AT(m, "finetune", "target", "0"),
           kept_target = MEAN_AT(m, "promot", "target", "0");
    const double little_skill = 20, little_learnt = 75; /* below, the claim is not put to the test */
    bool collapsed = tuned <= COLLAPSED / 100 * before, keeps = kept >= KEPT / 100 * before,
         learns = kept_target >= tuned_target - BEHIND;
    return before < little_skill          ? "Inconclusive, for the pretrained model can do too little to lose it"
           : tuned_target < little_learnt ? "Inconclusive, for fine-tuning does not learn the task"
           : collapsed && keeps && learns ? "ProMoT learns the task without losing the rest"
           : !collapsed                   ? "No collapse to prevent: plain fine-tuning keeps most of the rest"
           : !learns                      ? "ProMoT does not learn the task as well as fine-tuning"
           : kept > tuned                 ? "ProMoT loses less than plain fine-tuning, but does lose"
                                          : "ProMoT keeps no more than plain fine-tuning";
}

/* The finding in a sentence, whatever it is, and one more for each further pretrained model. */
static void add_finding(cJSON *json, size_t seeds)
{
    const cJSON *m = cJSON_GetObjectItemCaseSensitive(json, "methods"), *base;
    const char *verdict = study_verdict(m);
    double before = MEAN_AT(m, "pretrained", "heldout", "1");
    char *text = text_format(
        "%s: with the trained task at %.1f, plain fine-tuning leaves %.1f of %.1f on the held-out tasks after one "
        "example (%.1f %% of its answers are words of the trained task's format); ProMoT, at %.1f, leaves %.1f "
        "(%.1f %%). Means of %zu seed%s.",
        verdict, MEAN_AT(m, "finetune", "target", "0"), MEAN_AT(m, "finetune", "heldout", "1"), before,
        MEAN_AT(m, "finetune", "format_ratio", "1"), MEAN_AT(m, "promot", "target", "0"),
        MEAN_AT(m, "promot", "heldout", "1"), MEAN_AT(m, "promot", "format_ratio", "1"), seeds, seeds == 1 ? "" : "s");
    cJSON_ArrayForEach(base, cJSON_GetObjectItemCaseSensitive(json, "bases"))
    {
        const cJSON *further = cJSON_GetObjectItemCaseSensitive(base, "methods");
        bool same = study_verdict(further) == verdict;
        char *longer =
            text_format("%s On %s %s%s: of %.1f, plain fine-tuning leaves %.1f and ProMoT %.1f.", text,
                        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(base, "model")),
                        same ? "the same" : "not so: ", same ? "" : study_verdict(further),
                        MEAN_AT(further, "pretrained", "heldout", "1"), MEAN_AT(further, "finetune", "heldout", "1"),
                        MEAN_AT(further, "promot", "heldout", "1"));
        free(text);
        text = longer;
    }
    cJSON_AddStringToObject(json, "finding", text);
    free(text);
}

static void add_settings(const Study *s, cJSON *json)
{
    cJSON *settings = cJSON_AddObjectToObject(json, "settings");
    char *text;
    cJSON_AddStringToObject(settings, "promot", PROMOT_VERSION);
    cJSON_AddStringToObject(settings, "study", s->full ? "full" : "demo");
    cJSON_AddStringToObject(settings, "first seed", text = text_format("%zu", s->first_seed));
    free(text);
    cJSON_AddStringToObject(settings, "tuning", STUDY_TUNING);
    if (s->full) cJSON_AddStringToObject(settings, "the paper's settings", STUDY_PAPER);
    cJSON_AddStringToObject(settings, "prompt tuning", STUDY_METHODS[PROMPT_TUNING].train);
    cJSON_AddStringToObject(settings, "along training", text = text_format(STUDY_PROBES " %d", PROBE_ROWS));
    free(text);
}

/* All of results.json; *out is the caller's to delete, on an error too. */
static int study_results(const Study *s, cJSON **out, Error *error)
{
    Task *trained = task_builtin("rte", error);
    cJSON *json = *out = cJSON_CreateObject(), *bases, *base_json;
    int status = trained ? 0 : -1;
    cJSON_AddNumberToObject(json, "seeds", (double)s->n_seeds);
    cJSON_AddStringToObject(json, "model", s->bases[0]);
    add_settings(s, json);
    cJSON_AddNumberToObject(json, "first_rule", FIRST_RULE);
    cJSON_AddNumberToObject(json, "curve_rows", PROBE_ROWS);
    if (!status) status = add_tasks(s, trained, json, error);
    if (!status) status = add_methods(s, 0, trained, json, error);
    if (!status) status = add_context(s, json, error);
    if (!status) status = add_all_curves(s, json, error);
    if (!status) status = add_alignment(s, json, error);
    if (!status) status = add_samples(s, json, error);
    bases = cJSON_AddArrayToObject(json, "bases");
    for (size_t base = 1; !status && base < s->n_bases; base++) {
        cJSON *further = cJSON_CreateObject();
        cJSON_AddItemToArray(bases, further);
        cJSON_AddStringToObject(further, "model", s->bases[base]);
        cJSON_AddNumberToObject(further, "seeds", (double)s->n_seeds);
        status = add_methods(s, base, trained, further, error);
    }
    if (!status) status = add_commands(s, json, error);
    task_free(trained);
    if (status) return status;
    finish_numbers(json);
    add_target_numbers(cJSON_GetObjectItemCaseSensitive(json, "methods"));
    cJSON_ArrayForEach(base_json, bases) add_target_numbers(cJSON_GetObjectItemCaseSensitive(base_json, "methods"));
    add_checks(json, s->n_seeds);
    add_finding(json, s->n_seeds);
    return 0;
}

/* The report, and results.json: as it is read back, for a number that lies between two rounded ones may have lost its
 * last bit. The report looks at all of it first, so what it cannot be made of replaces no results.json. */
static int study_write(const Study *s, cJSON **results, Error *error)
{
    char *path = path_join(s->out, "results.json"), *text = cJSON_Print(*results);
    int status;
    cJSON_Delete(*results);
    *results = cJSON_Parse(text);
    status = study_report_write(s->out, *results, error);
    if (!status) status = file_write_text(path, text, error);
    free(text);
    free(path);
    return status;
}

/* A sample on a line of its own: what a model says may be anything. */
static void print_sample(const char *kind, const cJSON *sample)
{
    printf("%s", kind);
    for (const char *at = cJSON_GetStringValue(sample); at && *at; at++)
        putchar(iscntrl((unsigned char)*at) ? ' ' : *at);
    putchar('\n');
}

/* The mean at a place of a list, in a column of the terminal's table. */
static void print_mean(const cJSON *list, int place, int width, int decimals)
{
    double mean = record_number(cJSON_GetArrayItem(list, place), "mean");
    if (isfinite(mean))
        printf("%*.*f", width, decimals, mean);
    else
        printf("%*s", width, "-");
}

/* One of a method's curves; shots: NULL, for the dev scores have none. */
static const cJSON *curve_of(const cJSON *results, StudyMethod m, const char *what, const char *shots)
{
    const cJSON *curve = cJSON_GetObjectItemCaseSensitive(
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(results, "curves"), STUDY_METHODS[m].name),
        what);
    return shots ? cJSON_GetObjectItemCaseSensitive(curve, shots) : curve;
}

static const StudyMethod PRINTED_CURVES[] = {FINETUNE, PROMOT};

/* Figures 2, 3, 5 and 6 of the paper as numbers: what fine-tuning and ProMoT do to the trained task, the rest and the
 * format, step by step, and how much of ProMoT's gradient is format. */
static void print_curves(const cJSON *results)
{
    const cJSON *alignment = cJSON_GetObjectItemCaseSensitive(results, "alignment"), *step;
    int place = 0;
    printf("\nAlong training: the trained task on dev rows, held-out tasks after one example (%d test rows of each at "
           "most),\npercent of their answers in the format\n%-6s%27s%27s%27s\n%-6s%9s%9s%9s%9s%9s%9s%18s%9s\n",
           PROBE_ROWS, "", "plain fine-tuning", "ProMoT", "cosine with format", "step", "target", "held-out", "format",
           "target", "held-out", "format", "without prompt", "with");
    cJSON_ArrayForEach(step, curve_of(results, FINETUNE, "step", NULL))
    {
        printf("%-6.0f", step->valuedouble);
        for (int m = 0; m < 2; m++) {
            print_mean(curve_of(results, PRINTED_CURVES[m], "dev", NULL), place, 9, 1);
            print_mean(curve_of(results, PRINTED_CURVES[m], "heldout", "1"), place, 9, 1);
            print_mean(curve_of(results, PRINTED_CURVES[m], "format_ratio", "1"), place, 9, 1);
        }
        print_mean(
            cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(alignment, "without_prompt"), "cosine"),
            place, 18, 2);
        print_mean(
            cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(alignment, "with_prompt"), "cosine"),
            place, 9, 2);
        putchar('\n');
        place++;
    }
}

/* What becomes of tasks along training, by the number of worked examples. what: "target" or "heldout". */
static void print_curves_by_shots(const cJSON *results, const char *what, const char *title)
{
    static const char *const SHOTS[] = {"0", "1", "4"};
    const cJSON *step;
    int place = 0;
    printf("\n%s along training, by the number of worked examples\n%-6s%27s%27s\n%-6s", title, "", "plain fine-tuning",
           "ProMoT", "step");
    for (int i = 0; i < 6; i++) printf("%9s", SHOTS[i % 3]);
    putchar('\n');
    cJSON_ArrayForEach(step, curve_of(results, FINETUNE, "step", NULL))
    {
        printf("%-6.0f", step->valuedouble);
        for (int i = 0; i < 6; i++)
            print_mean(curve_of(results, PRINTED_CURVES[i / 3], what, SHOTS[i % 3]), place, 9, 1);
        putchar('\n');
        place++;
    }
}

/* The table, the curves, a few samples, and the finding. */
static int study_print(const Study *s, const cJSON *results, Error *error)
{
    char *table = study_table(results);
    const cJSON *sample, *check;
    int shown = 0;
    if (!table) return error_set(error, EXIT_FAILED, "memory: none left for a table");
    fputs(table, stdout);
    print_curves(results);
    print_curves_by_shots(results, "target", "The trained task (the first dev rows)");
    print_curves_by_shots(results, "heldout", "The held-out tasks");
    printf("\nThe first question of some tasks, after one example, and the answers of the first seed:\n");
    free(table);
    cJSON_ArrayForEach(sample, cJSON_GetObjectItemCaseSensitive(results, "samples"))
    {
        const cJSON *outputs = cJSON_GetObjectItemCaseSensitive(sample, "outputs");
        if (shown++ % 2) continue; /* every second task: the report has them all */
        print_sample("\n  ", cJSON_GetObjectItemCaseSensitive(sample, "input"));
        print_sample("    expected             ", cJSON_GetObjectItemCaseSensitive(sample, "target"));
        for (StudyMethod m = 0; m < N_METHODS; m++) {
            const cJSON *output = cJSON_GetObjectItemCaseSensitive(outputs, STUDY_METHODS[m].name);
            char *label = text_format("    %-20s ", STUDY_METHODS[m].label);
            if (output) print_sample(label, output);
            free(label);
        }
    }
    printf("\n");
    cJSON_ArrayForEach(check, cJSON_GetObjectItemCaseSensitive(results, "checks"))
    {
        printf("%-14s %s: %s (%s)\n",
               cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(check, "ok")) ? "reached" : "NOT REACHED",
               cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(check, "what")),
               cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(check, "value")),
               cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(check, "limit")));
    }
    printf("\n%s\n\nThe report is %s/report.html.\n",
           cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(results, "finding")), s->out);
    return 0;
}
