/* compare.c: promot eval --compare: evaluations side by side, as the paper's Table 3. A part of chapter 10 of
 * promot.c, which includes it. */

/* The analysis figure of a run: of the one that a path is, or of the one in which it lies (RUN/eval).
 * To be freed; NULL: there is none. */
static char *compared_figure(const char *path, const char *name)
{
    static const char *const runs[] = {"", "/.."};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        char *figure = text_format("%s%s/analysis/%s.json", path, runs[i], name),
             *settings = text_format("%s%s/run.json", path, runs[i]);
        bool there = path_exists(figure) && path_exists(settings);
        free(settings);
        if (there) return figure;
        free(figure);
    }
    return NULL;
}

/* One picture of a figure that several of the runs have: of each its "mean" curve, or its only one. */
static int write_compared_figure(const char *directory, const char *name, char *const *paths, char *const *labels,
                                 size_t count, Error *error)
{
    Figure **figures = host_alloc(count, sizeof *figures);
    PlotSeries *series = host_alloc(count, sizeof *series);
    Plot plot = {0};
    size_t n = 0, read = 0;
    int status = 0;
    for (size_t i = 0; !status && i < count; i++) {
        char *path = compared_figure(paths[i], name);
        const Plot *one;
        if (!path) continue;
        status = figure_read(path, &figures[read], error);
        free(path);
        if (status) break;
        one = figure_plot(figures[read++]);
        if (one->count == 0) continue;
        if (n == 0) plot = *one;
        if (strcmp(plot.title, one->title) != 0 || strcmp(plot.y_label, one->y_label) != 0) {
            status =
                error_set(error, EXIT_USAGE, "%s: its figure is \"%s\" of \"%s\" (expected \"%s\" of \"%s\" as of %s)",
                          paths[i], one->title, one->y_label, plot.title, plot.y_label, labels[0]);
            break;
        }
        series[n] = one->series[0];
        for (size_t k = 0; k < one->count; k++)
            if (strcmp(one->series[k].name, "mean") == 0) series[n] = one->series[k];
        series[n++].name = labels[i];
    }
    plot.count = n;
    plot.series = series;
    if (!status && n) status = figure_write(directory, name, &plot, error);
    for (size_t i = 0; i < read; i++) figure_free(figures[i]);
    free(series);
    free(figures);
    return status;
}

/* table.txt, .csv, .md, the figures and report.html. */
static int write_comparison(const char *directory, const cJSON *const *results, char *const *paths, char *const *labels,
                            size_t count, Error *error)
{
    static const char *const names[] = {"table.txt", "table.csv", "table.md"};
    static const char *const figures[] = {"format_ratio", "held_out", "tradeoff"};
    static const TableFormat formats[] = {TABLE_TEXT, TABLE_CSV, TABLE_MARKDOWN};
    ReportTable table = {.title = "Scores"};
    char *csv = NULL;
    int status = directory_create(directory, error);
    for (size_t i = 0; !status && i < sizeof names / sizeof *names; i++) {
        char *path = path_join(directory, names[i]),
             *text = results_compare(results, (const char *const *)labels, count, formats[i]);
        status = text ? file_write_text(path, text, error) : error_set(error, EXIT_FAILED, "%s: no memory", path);
        if (formats[i] == TABLE_CSV)
            csv = text;
        else
            free(text);
        free(path);
    }
    for (size_t i = 0; !status && i < sizeof figures / sizeof *figures; i++)
        status = write_compared_figure(directory, figures[i], paths, labels, count, error);
    table.csv = csv;
    if (!status)
        status = report_write(directory, "Runs side by side",
                              "Scores are on 0 to 100; Norm. Avg. is their plain mean "
                              "over the tasks that were not trained.",
                              &table, 1, error);
    free(csv);
    return status;
}

/* Where the results are: DIR, or of a run RUN/eval, if they are there. */
static char *evaluation_path(const char *directory)
{
    char *own = path_join(directory, "results.json"), *of_run = path_join(directory, "eval/results.json");
    bool in_eval = !path_exists(own) && path_exists(of_run);
    free(own);
    free(of_run);
    return in_eval ? path_join(directory, "eval") : text_format("%s", directory);
}

static int compare_runs(const Options *o, Error *error)
{
    static const char *const names[] = {"text", "csv", "markdown"};
    static const TableFormat formats[] = {TABLE_TEXT, TABLE_CSV, TABLE_MARKDOWN};
    size_t count = o->n_list[OPT_COMPARE], format = 0;
    cJSON **results = host_alloc(count, sizeof *results), *all;
    char **labels = host_alloc(count, sizeof *labels), **paths = host_alloc(count, sizeof *paths), *text;
    int status = 0;
    for (size_t i = 0; !status && i < count; i++) { /* DIR, or NAME=DIR */
        const char *argument = o->list[OPT_COMPARE][i], *equals = strchr(argument, '=');
        if (!equals || path_exists(argument)) equals = NULL;
        labels[i] = text_format("%.*s", equals ? (int)(equals - argument) : (int)strlen(argument), argument);
        paths[i] = evaluation_path(equals ? equals + 1 : argument);
        for (size_t k = 0; !status && k < i; k++)
            if (strcmp(labels[k], labels[i]) == 0)
                status = error_set(error, EXIT_USAGE, "--compare: expected different names, found %s again", labels[i]);
        if (!status) status = results_read(paths[i], &results[i], error);
    }
    while (strcmp(names[format], o->text[OPT_FORMAT]) != 0) format++;
    if (!status && o->text[OPT_OUT])
        status = write_comparison(o->text[OPT_OUT], (const cJSON *const *)results, paths, labels, count, error);
    if (!status && option_true(o, OPT_JSON)) {
        all = cJSON_CreateObject();
        for (size_t i = 0; i < count; i++) cJSON_AddItemToObject(all, labels[i], cJSON_Duplicate(results[i], true));
        print_json(all);
    } else if (!status) {
        text = results_compare((const cJSON *const *)results, (const char *const *)labels, count, formats[format]);
        if (text) fputs(text, stdout);
        if (!text) status = error_set(error, EXIT_FAILED, "memory: none left for the table");
        free(text);
    }
    for (size_t i = 0; i < count; i++) {
        cJSON_Delete(results[i]);
        free(labels[i]);
        free(paths[i]);
    }
    free(results);
    free(labels);
    free(paths);
    return status;
}
