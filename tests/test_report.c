/* test_report.c: data/report.c. Pictures are checked to be well-formed XML without a NaN, and a small one to the byte
 * of its paths; how they look is for eyes. */
#include "../data/files.c"
#include "../data/text_buffer.c"
#include "../data/report.c"

#include "markup.h"
#include "test.h"

#define SCRATCH "build/test/report"

static Error error;

/* ------------------------------------------------------------------------------------------------------------- help */

static void fresh_scratch(void)
{
    CHECK(directory_remove(SCRATCH, &error) == 0, "%s", error.text);
    CHECK(directory_create(SCRATCH, &error) == 0, "%s", error.text);
}

/* A whole file as text, to be freed. */
static char *read_text(const char *path)
{
    MappedFile file;
    CHECK(mapped_file_open(&file, path, &error) == 0, "%s", error.text);
    char *text = strndup((const char *)file.data, file.bytes);
    mapped_file_close(&file);
    return text;
}

static void test_well_formedness_itself(void)
{
    static const char *const wrong[] = {
        "",         "<a>",           "<a></b>",     "<a/><b/>",    "</a>",           "<a b=c/>",    "<a b=\"<\"/>",
        "<a>&</a>", "<a>&nbsp;</a>", "<a>\x01</a>", "<a>\xff</a>", "<a><b></a></b>", "<a>< b/></a>"};
    CHECK(!malformed_at("<a b=\"c\" d=\"\"><b1/>&lt;\n</a>"));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) CHECK(malformed_at(wrong[i]), "%s", wrong[i]);
}

/* Draws, checks what holds for every picture, and returns it, to be freed. */
static char *draw(const Plot *plot)
{
    char *svg = plot_svg(plot);
    CHECK(svg);
    const char *at = malformed_at(svg);
    CHECK(!at, "%s: not well-formed at \"%.60s\"", text_or_empty(plot->title), at ? at : "");
    for (at = svg; (at = strstr(at, "d=\"")); at++) /* numbers in paths are numbers */
        CHECK(strspn(at + 3, "MLHVmlhvz0123456789.- ") == strcspn(at + 3, "\""), "%.80s", at);
    CHECK(count_of(svg, "=\"nan") + count_of(svg, "=\"-nan") + count_of(svg, "=\"inf") + count_of(svg, "=\"-inf") == 0);
    return svg;
}

static char *draw_one(size_t n, const double *x, const double *y, const double *spread, bool points)
{
    PlotSeries series = {"name", n, x, y, spread};
    return draw(&(Plot){"title", "x", "y", "", 1, &series, points, 0, 0});
}

/* ------------------------------------------------------------------------------------------------------------- axes */

static void test_ticks(void)
{
    static const struct {
        double low, high;
        const char *ticks;
    } cases[] = {
        {0, 100, "0 20 40 60 80 100"},
        {-3, 97, "\u221220 0 20 40 60 80 100"},
        {0.02, 0.61, "0.0 0.1 0.2 0.3 0.4 0.5 0.6 0.7"},
        {-0.004, 0.004, "\u22120.004 \u22120.002 0.000 0.002 0.004"},
        {3, 3, "2.7 2.8 2.9 3.0 3.1 3.2 3.3"},
        {0, 0, "\u22121.0 \u22120.5 0.0 0.5 1.0"},
        {5000, 30000, "5,000 10,000 15,000 20,000 25,000 30,000"},
        {-1234567, 0, "\u22121,500,000 \u22121,000,000 \u2212500,000 0"},
        {0, 5e-5, "0 1e\u22125 2e\u22125 3e\u22125 4e\u22125 5e\u22125"},
        {0, 1.2e10, "0 2e9 4e9 6e9 8e9 1e10 1.2e10"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        Axis axis = axis_over(cases[c].low, cases[c].high, 6, false, true);
        TextBuffer out = {0};
        for (int i = 0; i < axis_ticks(&axis); i++) {
            char tick[NUMBER_BYTES];
            format_tick(&axis, axis_tick(&axis, i), tick);
            text_put_format(&out, "%s%s", i > 0 ? " " : "", tick);
        }
        char *ticks = text_take(&out);
        CHECK(strcmp(ticks, cases[c].ticks) == 0, "%g to %g: %s", cases[c].low, cases[c].high, ticks);
        free(ticks);
    }
}

/* Whatever the values, an axis has some ticks but few, and different ones. */
static void test_extreme_axes(void)
{
    static const double values[] = {0,     -0.0, 5e-324, 1e-300, 1e-150, 1e-9,  1,     3.7,     100,
                                    12345, 1e9,  1e15,   1e16,   1e100,  1e150, 2e150, 1e15 + 1};
    enum { N = sizeof values / sizeof *values };
    for (int i = 0; i < 2 * N; i++) {
        for (int j = 0; j < 2 * N; j++) {
            double a = i < N ? values[i] : -values[i - N], b = j < N ? values[j] : -values[j - N];
            bool whole = a == floor(a) && b == floor(b);
            if (a > b) continue;
            for (int kind = 0; kind < (whole ? 4 : 2); kind++) {
                Axis axis = axis_over(a, b, 6, kind & 2, kind & 1);
                int ticks = axis_ticks(&axis);
                double slack = 1e-8 * axis.step; /* a value that misses a tick by rounding only gets no tick more */
                CHECK(axis.low <= a + slack && axis.high >= b - slack && axis.low < axis.high, "%g to %g: %g to %g", a,
                      b, axis.low, axis.high);
                CHECK(ticks >= (kind & 1 ? 2 : 1) && ticks <= 10, "%g to %g: %d ticks", a, b, ticks);
                CHECK(ticks < 2 || axis_tick(&axis, 0) < axis_tick(&axis, 1));
                for (int t = 0; t < ticks; t++) {
                    char text[NUMBER_BYTES];
                    format_tick(&axis, axis_tick(&axis, t), text);
                    CHECK(strlen(text) < 24, "%s", text);
                }
            }
        }
    }
}

static void test_whole_numbers_of_shots(void)
{
    const double x[] = {0, 1, 4}, y[] = {1, 2, 3};
    char *svg = draw_one(3, x, y, NULL, false);
    CHECK(strstr(svg, ">3</text>") && !strstr(svg, ">0.5</text>\n<text x=\"1"), "%s", svg);
    free(svg);
    Axis axis = axis_over(0, 1, 7, true, false);
    CHECK(axis_ticks(&axis) == 2 && axis.step == 1);
}

/* --------------------------------------------------------------------------------------------------------- pictures */

/* Without names and labels the plane is easy to reckon: the ticks of y are 0.0 … 1.0, three characters, so that it lies
 * from 16 + 8 + 3 * 6.9 = 44.7 to 720 - 24 = 696, marks 10 further in; y 0 is at 22 + 300 = 322, y 1 at 22. */
static void test_where_things_are(void)
{
    const double x[] = {0, 1, 3}, y[] = {0, 1, 0.5};
    PlotSeries series = {"", 3, x, y, NULL};
    char *svg = draw(&(Plot){.count = 1, .series = &series});
    CHECK(strstr(svg, "height=\"354\" viewBox=\"0 0 720 354\""));
    CHECK(strstr(svg, " d=\"M54.7 322.0L265.1 22.0L686.0 172.0\"/>"), "%s", svg);
    CHECK(strstr(svg, "cx=\"265.1\" cy=\"22.0\" r=\"4.0\"/>"));
    CHECK(count_of(svg, "<circle") == 3);
    CHECK(strstr(svg, "<path d=\"M44.7 322.0L696.0 322.0\"/>"), "the axis");
    free(svg);
}

static void test_gaps(void)
{
    const double x[] = {0, 1, 2, 3, 4, 5, 6}, y[] = {1, 2, NAN, 2, INFINITY, 0, 1};
    const double spread[] = {0.1, 0.1, 0.1, 0.5, 0.1, NAN, -0.2};
    char *svg = draw_one(7, x, y, NULL, false);
    /* two lines of two points and a lone one between them, which has its mark; and the line beside the name */
    CHECK(count_of(svg, "stroke-linejoin") == 3 && count_of(svg, "<circle") == 6, "%s", svg);
    free(svg);
    svg = draw_one(7, x, y, spread, false);
    CHECK(count_of(svg, "fill-opacity") == 2 && count_of(svg, "stroke-opacity") == 1, "%s", svg);
    free(svg);
    svg = draw_one(7, x, y, spread, true);
    CHECK(count_of(svg, "fill-opacity") == 0 && count_of(svg, "stroke-opacity") == 3, "%s", svg);
    CHECK(count_of(svg, "class=\"hollow\"") == 1);
    free(svg);
}

static void test_a_single_point_is_seen(void)
{
    const double x[] = {7}, y[] = {42};
    for (int points = 0; points < 2; points++) {
        char *svg = draw_one(1, x, y, NULL, points);
        CHECK(count_of(svg, "<circle class=\"mark\"") == 2, "%s", svg); /* with that of the name */
        CHECK(strstr(svg, ">7</text>") || points);
        free(svg);
    }
}

static void test_many_points_few_marks(void)
{
    enum { N = 6000 };
    double *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    for (int i = 0; i < N; i++) x[i] = i, y[i] = i % 7;
    char *svg = draw_one(N, x, y, NULL, false);
    CHECK(count_of(svg, "<circle") == 8 + 1, "%d", count_of(svg, "<circle"));
    free(svg);
    y[100] = y[102] = NAN; /* what would not be seen otherwise has a mark */
    svg = draw_one(N, x, y, NULL, false);
    CHECK(count_of(svg, "<circle") == 9 + 1, "%d", count_of(svg, "<circle"));
    free(svg);
    free(x);
    free(y);
}

static void test_nothing_to_draw(void)
{
    const double nan[] = {NAN, NAN}, huge[] = {1e200, -1e200};
    char *svg = draw(&(Plot){"t", "x", "y", "c", 0, NULL, false, 0, 0});
    CHECK(strstr(svg, "no data"));
    free(svg);
    svg = draw_one(2, nan, huge, huge, false);
    CHECK(strstr(svg, "no data") && strstr(svg, ">name</text>"));
    free(svg);
    svg = draw_one(0, NULL, NULL, NULL, true);
    CHECK(strstr(svg, "no data"));
    free(svg);
}

static void test_degenerate_values(void)
{
    static const double cases[][3] = {{0, 0, 0},          {5, 5, 5},         {-1e150, 0, 1e150},  {5e-324, 0, 0},
                                      {1e15, 1e15, 1e15}, {1, 1 + 1e-15, 1}, {1e-200, 2e-200, 0}, {1e300, 0, NAN}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t j = 0; j < sizeof cases / sizeof *cases; j++)
            for (int points = 0; points < 2; points++) free(draw_one(3, cases[i], cases[j], cases[i], points));
}

/* Where the names stand: apart from each other and within the picture. */
static void check_names(size_t count, bool points, bool equal)
{
    double x[] = {0, 1}, y[64][2];
    char names[64][32];
    PlotSeries series[64];
    for (size_t s = 0; s < count; s++) {
        y[s][0] = 0;
        y[s][1] = equal ? 1 : (double)(s * 37 % count);
        snprintf(names[s], sizeof names[s], "series %zu", s);
        series[s] = (PlotSeries){names[s], 2, x, y[s], NULL};
    }
    Plot plot = {"t", "x", "y", "", count, series, points, 0, 0};
    Frame frame;
    CHECK(frame_lay_out(&frame, &plot) == 0);
    for (size_t s = 0; s < count; s++) {
        CHECK(frame.label_y[s] > frame.top && frame.label_y[s] < frame.bottom);
        for (size_t o = 0; o < s; o++)
            CHECK(fabs(frame.label_y[s] - frame.label_y[o]) >= LABEL_SPACING - 1e-9, "%zu and %zu", s, o);
    }
    free(frame.label_y);
    char *svg = draw(&plot);
    for (size_t s = 0; s < count; s++) CHECK(strstr(svg, names[s]));
    free(svg);
}

static void test_many_names_fit(void)
{
    check_names(2, false, true);
    check_names(12, false, false);
    check_names(12, true, false);
    check_names(64, false, true);
}

static void test_names_stand_at_the_ends_of_curves(void)
{
    const double x[] = {0, 1}, low[] = {9, 0}, high[] = {0, 9};
    PlotSeries series[] = {{"falls", 2, x, low, NULL}, {"rises", 2, x, high, NULL}};
    Plot plot = {"", "", "", "", 2, series, false, 0, 0};
    Frame frame;
    CHECK(frame_lay_out(&frame, &plot) == 0);
    CHECK(frame.label_y[0] == frame.bottom - 6 && frame.label_y[1] < frame.top + 40);
    free(frame.label_y);
}

/* Colour, dash and mark together: no two of as many series as one could look at are drawn alike. */
static void test_series_differ(void)
{
    for (size_t a = 0; a < 140; a++)
        for (size_t b = 0; b < a; b++)
            CHECK(a % N_COLOURS != b % N_COLOURS || a % N_DASHES != b % N_DASHES || a % N_MARKS != b % N_MARKS);
    CHECK(sizeof COLOURS / sizeof *COLOURS == N_COLOURS && sizeof DASHES / sizeof *DASHES == N_DASHES);
}

static const char ODD[] = "<b>&\"quotes\"'\x01\x1b[2J\x7f \xff\xc3\t漢\xef\xbf\xbf</title>";

static void test_escaping(void)
{
    const double one[] = {1};
    PlotSeries series = {ODD, 1, one, one, NULL};
    char *svg = draw(&(Plot){ODD, ODD, ODD, ODD, 1, &series, false, 0, 0});
    CHECK(strstr(svg,
                 "<title>&lt;b&gt;&amp;&quot;quotes&quot;'\uFFFD\uFFFD[2J\uFFFD \uFFFD\uFFFD\t漢\uFFFD&lt;/title&gt;"
                 "</title>"),
          "%s", svg);
    free(svg);
}

static void test_long_texts_are_cut(void)
{
    char text[400];
    const double one[] = {1};
    memset(text, 'm', sizeof text);
    text[sizeof text - 1] = '\0';
    PlotSeries series = {text, 1, one, one, NULL};
    char *svg = draw(&(Plot){text, text, text, "", 1, &series, false, 0, 0});
    CHECK(count_of(svg, "m…</text>") == 4, "%d", count_of(svg, "m…</text>"));
    free(svg);
    TextBuffer out = {0};
    put_fitted(&out, "漢字漢字", 8);
    put_fitted(&out, "漢字漢字", 7);
    put_fitted(&out, "a&b<c", 4);
    char *cut = text_take(&out);
    CHECK(strcmp(cut, "漢字漢字漢字漢…a&amp;b…") == 0, "%s", cut);
    free(cut);
}

/* ---------------------------------------------------------------------------------------------------------- figures */

static const double X[] = {0, 1e-3, 0.1, 1.0 / 3, NAN}, Y[] = {-0.5, 1e300, -INFINITY, 5e-324, 7};
static const double SPREADS[] = {0, 0.25, NAN, 1, 2};

static void write_figure(const char *name)
{
    const PlotSeries series[] = {{"a,\"b\"", 5, X, Y, SPREADS}, {"漢", 2, X, X, NULL}, {"", 0, X, X, NULL}};
    Plot plot = {"the \"title\"", "x\\\n", "y\x01", "caption", 3, series, true, 0, 0};
    CHECK(figure_write(SCRATCH "/new/folder", name, &plot, &error) == 0, "%s", error.text);
}

static bool same(double a, double b)
{
    return a == b || (!isfinite(a) && isnan(b));
}

/* A wider axis than the data need, and it is kept. */
static void test_range_of_the_axis(void)
{
    const double x[] = {0, 1}, y[] = {96, 97};
    PlotSeries series = {"", 2, x, y, NULL};
    Plot plot = {.count = 1, .series = &series, .y_high = 100};
    char *svg = draw(&plot);
    Figure *figure;
    fresh_scratch();
    CHECK(strstr(svg, ">0</text>") && strstr(svg, ">100</text>"), "%s", svg);
    free(svg);
    CHECK(figure_write(SCRATCH, "range", &plot, &error) == 0, "%s", error.text);
    CHECK(figure_read(SCRATCH "/range.json", &figure, &error) == 0, "%s", error.text);
    if (!figure) return;
    CHECK(figure_plot(figure)->y_low == 0 && figure_plot(figure)->y_high == 100);
    figure_free(figure);
    plot.y_low = plot.y_high = 0;
    svg = draw(&plot);
    CHECK(!strstr(svg, ">0</text>\n<text x=\"3") && !strstr(svg, ">100</text>"), "%s", svg);
    free(svg);
}

/* A band that would leave a given range is cut, and the axis stays as it is. */
static void test_bands_end_with_the_range(void)
{
    const double x[] = {0, 1}, y[] = {2, 99}, spread[] = {10, 10};
    PlotSeries series = {"", 2, x, y, spread};
    Plot plot = {.count = 1, .series = &series, .y_high = 100};
    Frame frame;
    CHECK(frame_lay_out(&frame, &plot) == 0 && frame.y.low == 0 && frame.y.high == 100);
    CHECK(pixel_y_cut(&frame, 109) == pixel_y(&frame, 100) && pixel_y_cut(&frame, -8) == pixel_y(&frame, 0));
    CHECK(fabs(pixel_y(&frame, 100) - frame.top) < 1e-5 &&
          fabs(pixel_y(&frame, 0) - frame.bottom) < 1e-5); /* OFF_HALVES */
    CHECK(pixel_y_cut(&frame, 50) == pixel_y(&frame, 50));
    free(frame.label_y);
    char *svg = draw(&plot);
    CHECK(strstr(svg, " d=\"M54.7 286.0L686.0 22.0L686.0 55.0L54.7 322.0z\"/>"), "%s", svg);
    free(svg);
}

static void test_round_trip(void)
{
    Figure *figure;
    fresh_scratch();
    write_figure("one");
    CHECK(figure_read(SCRATCH "/new/folder/one.json", &figure, &error) == 0, "%s", error.text);
    if (!figure) return;
    const Plot *plot = figure_plot(figure);
    CHECK(strcmp(plot->title, "the \"title\"") == 0 && strcmp(plot->x_label, "x\\\n") == 0);
    CHECK(strcmp(plot->y_label, "y\x01") == 0 && strcmp(plot->caption, "caption") == 0);
    CHECK(plot->count == 3 && plot->points);
    CHECK(strcmp(plot->series[0].name, "a,\"b\"") == 0 && plot->series[0].n == 5);
    for (size_t i = 0; i < 5; i++) {
        CHECK(same(X[i], plot->series[0].x[i]), "%.17g", plot->series[0].x[i]);
        CHECK(same(Y[i], plot->series[0].y[i]), "%.17g", plot->series[0].y[i]);
        CHECK(same(SPREADS[i], plot->series[0].spread[i]));
    }
    CHECK(plot->series[1].n == 2 && plot->series[1].x[1] == 1e-3 && !plot->series[1].spread);
    CHECK(plot->series[2].n == 0);
    CHECK(figure_write(SCRATCH, "again", plot, &error) == 0, "%s", error.text);
    for (const char *const *suffix = (const char *const[]){"svg", "csv", "json", NULL}; *suffix; suffix++) {
        char path[128], *first, *second;
        snprintf(path, sizeof path, SCRATCH "/new/folder/one.%s", *suffix);
        first = read_text(path);
        snprintf(path, sizeof path, SCRATCH "/again.%s", *suffix);
        second = read_text(path);
        CHECK(strcmp(first, second) == 0, "%s: %s\nand\n%s", *suffix, first, second);
        free(first);
        free(second);
    }
    figure_free(figure);
}

static void test_figure_files(void)
{
    fresh_scratch();
    write_figure("one");
    char *csv = read_text(SCRATCH "/new/folder/one.csv"), *json = read_text(SCRATCH "/new/folder/one.json");
    CHECK(strcmp(csv, "series,x,y,spread\n"
                      "\"a,\"\"b\"\"\",0,-0.5,0\n"
                      "\"a,\"\"b\"\"\",0.001,1e+300,0.25\n"
                      "\"a,\"\"b\"\"\",0.1,,\n"
                      "\"a,\"\"b\"\"\",0.3333333333333333,4.94065645841247e-324,1\n"
                      "\"a,\"\"b\"\"\",,7,2\n"
                      "漢,0,0,\n"
                      "漢,0.001,0.001,\n") == 0,
          "%s", csv);
    CHECK(strstr(json, "{\"figure\": 1,\n\"title\": \"the \\\"title\\\"\",\n\"x_label\": \"x\\\\\\u000a\",\n"
                       "\"y_label\": \"y\\u0001\",\n") == json,
          "%s", json);
    CHECK(strstr(json, " \"y\": [-0.5,1e+300,null,4.94065645841247e-324,7],\n \"spread\": [0,0.25,null,1,2]}"), "%s",
          json);
    free(csv);
    free(json);
    CHECK(figure_write("/dev/null/x", "a", &(Plot){.title = "t"}, &error) == -1 && *error.text);
}

static void expect_refused(const char *text, const char *said)
{
    Figure *figure = (Figure *)&error; /* not NULL */
    memset(&error, 0, sizeof error);
    CHECK(file_write_text(SCRATCH "/bad.json", text, &error) == 0, "%s", error.text);
    CHECK(figure_read(SCRATCH "/bad.json", &figure, &error) == -1, "%s was read", text);
    CHECK(error.exit_code == EXIT_FAILED && strstr(error.text, said), "%s (expected: %s)", error.text, said);
    CHECK(strstr(error.text, SCRATCH "/bad.json: ") == error.text && !figure);
}

static void test_damaged_figures(void)
{
    Figure *figure;
    fresh_scratch();
    CHECK(figure_read(SCRATCH "/none.json", &figure, &error) == -1 && error.exit_code == EXIT_USAGE && !figure);
    expect_refused("", "expected JSON");
    expect_refused("{\"figure\":1,\"series\":[]", "expected JSON");
    expect_refused("{\"figure\":1,\"title\":\"\xff\",\"series\":[]}", "expected JSON");
    expect_refused("{\"series\":[]}", "a number \"figure\"");
    expect_refused("{\"figure\":1}", "a list \"series\"");
    expect_refused("{\"figure\":1,\"title\":7,\"series\":[]}", "title, labels");
    expect_refused("{\"figure\":1,\"points\":7,\"series\":[]}", "\"points\" true or false");
    expect_refused("{\"figure\":1,\"series\":[7]}", "a name");
    expect_refused("{\"figure\":1,\"series\":[{\"name\":7,\"x\":[],\"y\":[]}]}", "a name");
    expect_refused("{\"figure\":1,\"series\":[{\"x\":[]}]}", "lists of numbers");
    expect_refused("{\"figure\":1,\"series\":[{\"x\":[1],\"y\":[\"1\"]}]}", "lists of numbers");
    expect_refused("{\"figure\":1,\"series\":[{\"x\":[1],\"y\":{\"a\":1}}]}", "lists of numbers");
    expect_refused("{\"figure\":1,\"series\":[{\"x\":[1],\"y\":[1,2]}]}", "equally long");
    expect_refused("{\"figure\":1,\"series\":[{\"x\":[1],\"y\":[1],\"spread\":[]}]}", "equally long");
}

/* ----------------------------------------------------------------------------------------------------------- report */

static void check_grid(const char *csv, const char *expected)
{
    Grid grid;
    TextBuffer out = {0};
    CHECK(grid_read(&grid, csv) == 0);
    for (size_t row = 0; row < grid.rows; row++)
        for (size_t column = 0; column < grid.columns; column++)
            text_put_format(&out, "%s%s", grid_cell(&grid, row, column), column + 1 < grid.columns ? "|" : "#");
    char *found = text_take(&out);
    CHECK(strcmp(found, expected) == 0, "\"%s\" gives \"%s\", expected \"%s\"", csv, found, expected);
    free(found);
    grid_free(&grid);
}

static void test_grids(void)
{
    check_grid("", "");
    check_grid("a", "a#");
    check_grid("a,b\n1,2\n", "a|b#1|2#");
    check_grid("a,b\r\n1,2\r\n", "a|b#1|2#");
    check_grid("a,\n,", "a|#|#");
    check_grid("a\n\nb,c", "a|#|#b|c#");
    check_grid("\"a,\"\"b\"\"\nc\",d\n\"\",\"x\"y", "a,\"b\"\nc|d#|xy#");
    check_grid("\"not closed, 1\n2", "not closed, 1\n2#");
    check_grid("a\tb,\"c\n1\t\"2\"", "a|b,\"c#1|\"2\"#");
    check_grid("a,b\n1\t2,3", "a|b#1\t2|3#");
}

static void test_numeric_cells(void)
{
    static const char *const yes[] = {"", "-", "0", "-47.65", "1e-5", "86.28 ± 0.50", "12%"};
    static const char *const no[] = {"a", "1 2", "1 ±", "--", "5 shots", "± 1"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) CHECK(is_numeric(yes[i]), "%s", yes[i]);
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) CHECK(!is_numeric(no[i]), "%s", no[i]);
}

static void test_table_as_text(void)
{
    char *text = table_text("run,score,\n\"a\tb\",7,x\n漢,12.5,\n");
    CHECK(strcmp(text, "run  score  \na b      7  x\n漢    12.5  \n") == 0, "%s", text);
    free(text);
    text = table_text("");
    CHECK(strcmp(text, "") == 0, "%s", text);
    free(text);
}

static void test_pictures_side_by_side(void)
{
    const double x[] = {0, 1};
    PlotSeries series = {"name", 2, x, x, NULL};
    Plot plots[] = {{.title = "left", .count = 1, .series = &series}, {.x_label = ODD, .count = 1, .series = &series}};
    char *svg = plots_svg(plots, 2, 400);
    CHECK(!malformed_at(svg), "%s", svg);
    CHECK(strstr(svg, "width=\"800\" height=\"378\"") && count_of(svg, "<svg class=\"plot\"") == 3);
    CHECK(count_of(svg, "width=\"400\"") == 2 && strstr(svg, "translate(400 0)"));
    CHECK(strstr(svg, "<style>") && strstr(svg, "prefers-color-scheme:dark"));
    free(svg);
    svg = plots_svg(NULL, 0, 400);
    CHECK(!malformed_at(svg), "%s", svg);
    free(svg);
}

/* In a page: its style sheet is the page's, and the caption stands once below. */
static void test_panels_of_a_page(void)
{
    const double x[] = {0, 1};
    PlotSeries series = {"name", 2, x, x, NULL};
    Plot plots[] = {{.title = "left", .caption = "<c>", .count = 1, .series = &series},
                    {.title = "right", .caption = "<c>", .count = 1, .series = &series}};
    TextBuffer page = {0};
    page_panels(&page, plots, 2);
    char *html = text_take(&page);
    CHECK(!malformed_at(html), "%s", html);
    CHECK(count_of(html, "<svg class=\"plot\"") == 3 && count_of(html, "width=\"360\"") == 2 &&
              strstr(html, "<figure>\n<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" width=\"720\""),
          "%s", html);
    CHECK(strstr(html, "<title>left</title>") < strstr(html, "translate(360 0)") &&
          strstr(html, "translate(360 0)") < strstr(html, "<title>right</title>"));
    CHECK(!strstr(html, "<style>") && count_of(html, "<figcaption>&lt;c&gt;</figcaption>") == 1, "%s", html);
    free(html);
}

static void test_report(void)
{
    const ReportTable tables[] = {{"Scores <1>", "run,rte\n\"a<b\",47.65\nb\n"}, {"Empty", ""}};
    fresh_scratch();
    write_figure("b");
    CHECK(figure_write(SCRATCH "/new/folder", "a", &(Plot){.title = "first", .caption = "<c>"}, &error) == 0);
    CHECK(file_write_text(SCRATCH "/new/folder/results.json", "{\"tasks\": {}}", &error) == 0);
    CHECK(file_write_text(SCRATCH "/new/folder/c.json", "not JSON", &error) == 0);
    CHECK(file_write_text(SCRATCH "/new/folder/d.json", "", &error) == 0);
    CHECK(directory_create(SCRATCH "/new/folder/e.json", &error) == 0);
    CHECK(report_write(SCRATCH "/new/folder", "R & D", "One\ntwo.\n\n\nThree <3.\n", tables, 2, &error) == 0, "%s",
          error.text);
    char *page = read_text(SCRATCH "/new/folder/report.html");
    CHECK(strncmp(page, "<!doctype html>\n", 16) == 0 && strstr(page, "<title>R &amp; D</title>"));
    CHECK(strstr(page, "<h1>R &amp; D</h1>\n<p>One\ntwo.</p>\n<p>Three &lt;3.\n</p>\n"), "%s", page);
    CHECK(strstr(page, "<h2>Scores &lt;1&gt;</h2>\n<div class=\"wide\"><table>\n"
                       "<thead><tr><th>run</th><th class=\"number\">rte</th></tr>\n</thead><tbody>\n"
                       "<tr><td>a&lt;b</td><td class=\"number\">47.65</td></tr>\n"
                       "<tr><td>b</td><td class=\"number\"></td></tr>\n</tbody></table></div>"),
          "%s", page);
    CHECK(count_of(page, "<figure>") == 2 && count_of(page, "<svg") == 2);
    CHECK(strstr(page, "<title>first</title>") < strstr(page, "<title>the &quot;title&quot;</title>"));
    CHECK(strstr(page, "<figcaption>&lt;c&gt;</figcaption>"));
    CHECK(strstr(page, "prefers-color-scheme:dark") && !strstr(page, "<script") && !strstr(page, "href"));
    CHECK(count_of(page, "http") == count_of(page, "xmlns=\"http://www.w3.org/2000/svg\""), "nothing from the network");
    free(page);
}

/* The page without what only HTML allows must be as well-formed as a picture. */
static void test_page_is_well_formed(void)
{
    const ReportTable table = {ODD, "a,b\n<,&\n"};
    fresh_scratch();
    write_figure("b");
    CHECK(report_write(SCRATCH "/new/folder", ODD, ODD, &table, 1, &error) == 0, "%s", error.text);
    char *page = read_text(SCRATCH "/new/folder/report.html"), *body = strstr(page, "<main>");
    char *end = body ? strstr(body, "</main>") : NULL;
    CHECK(end);
    if (end) {
        end[strlen("</main>")] = '\0';
        const char *at = malformed_at(body);
        CHECK(!at, "%.100s", at ? at : "");
    }
    free(page);
}

/* A directory lists its files in any order. */
static void test_figures_in_name_order(void)
{
    static const char names[] = "hcjaegbidf";
    fresh_scratch();
    for (size_t i = 0; i < strlen(names); i++) {
        char name[] = {names[i], '\0'};
        CHECK(figure_write(SCRATCH, name, &(Plot){.title = name}, &error) == 0, "%s", error.text);
    }
    CHECK(report_write(SCRATCH, "t", "", NULL, 0, &error) == 0, "%s", error.text);
    char *page = read_text(SCRATCH "/report.html"), *at = strstr(page, "</style>");
    for (char c = 'a'; c <= 'j'; c++) {
        at = strstr(at, "\">\n<title>");
        CHECK(at && at[10] == c, "%c is not in its place", c);
        if (!at++) break;
    }
    free(page);
}

static void test_report_with_a_damaged_figure(void)
{
    fresh_scratch();
    CHECK(file_write_text(SCRATCH "/a.json", "{ \"figure\": 1, \"title\"", &error) == 0);
    CHECK(report_write(SCRATCH, "t", "", NULL, 0, &error) == -1);
    CHECK(error.exit_code == EXIT_FAILED && strstr(error.text, SCRATCH "/a.json: not a figure"), "%s", error.text);
    CHECK(!path_exists(SCRATCH "/report.html"));
}

static const Test TESTS[] = {
    {"well_formedness_itself", test_well_formedness_itself},
    {"ticks", test_ticks},
    {"extreme_axes", test_extreme_axes},
    {"whole_numbers_of_shots", test_whole_numbers_of_shots},
    {"where_things_are", test_where_things_are},
    {"gaps", test_gaps},
    {"a_single_point_is_seen", test_a_single_point_is_seen},
    {"many_points_few_marks", test_many_points_few_marks},
    {"nothing_to_draw", test_nothing_to_draw},
    {"degenerate_values", test_degenerate_values},
    {"many_names_fit", test_many_names_fit},
    {"names_stand_at_the_ends_of_curves", test_names_stand_at_the_ends_of_curves},
    {"series_differ", test_series_differ},
    {"escaping", test_escaping},
    {"long_texts_are_cut", test_long_texts_are_cut},
    {"range_of_the_axis", test_range_of_the_axis},
    {"bands_end_with_the_range", test_bands_end_with_the_range},
    {"round_trip", test_round_trip},
    {"figure_files", test_figure_files},
    {"damaged_figures", test_damaged_figures},
    {"grids", test_grids},
    {"numeric_cells", test_numeric_cells},
    {"table_as_text", test_table_as_text},
    {"pictures_side_by_side", test_pictures_side_by_side},
    {"panels_of_a_page", test_panels_of_a_page},
    {"report", test_report},
    {"page_is_well_formed", test_page_is_well_formed},
    {"figures_in_name_order", test_figures_in_name_order},
    {"report_with_a_damaged_figure", test_report_with_a_damaged_figure},
};

TEST_MAIN(TESTS)
