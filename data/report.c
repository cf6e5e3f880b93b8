/* report.c: see report.h.
 *
 * Colours stand in the SVG as plain attributes, which every program understands, and once more as classes: the style
 * sheet of a report overrules the attributes, so that the same picture is legible on a dark screen. */
#include "report.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_internal.h" /* json_parse */
#include "files.h"
#include "text_buffer.h"

static const char *text_or_empty(const char *text)
{
    return text ? text : "";
}

/* ------------------------------------------------------------------------------------------------------------- axes */

/* Beyond that the arithmetic of axes would overflow; such values are gaps, like infinity. */
static const double LARGEST_DRAWN = 1e150;

static bool is_drawn(double x, double y)
{
    return fabs(x) <= LARGEST_DRAWN && fabs(y) <= LARGEST_DRAWN; /* false for NaN */
}

typedef struct {
    double low, high, step; /* ticks are the multiples of step in [low, high] */
} Axis;

/* 1, 2 or 5 times a power of ten, and at least the given step. */
static double round_step(double step)
{
    double power = pow(10, floor(log10(step))), fraction = step / power - 1e-9;
    return power * (fraction <= 1 ? 1 : fraction <= 2 ? 2 : fraction <= 5 ? 5 : 10);
}

/* whole: no ticks between whole numbers. to_ticks: both ends are ticks. */
static Axis axis_over(double low, double high, int ticks, bool whole, bool to_ticks)
{
    double largest = fmax(fabs(low), fabs(high));
    /* All values are equal, or as good as equal: they come to lie in the middle. */
    if (high - low < fmax(1e-9 * largest, 1e-140)) {
        double half = largest > 1e-140 ? largest / 10 : 1;
        low -= half;
        high += half;
    }
    Axis axis = {low, high, round_step((high - low) / ticks)};
    if (whole && axis.step < 1) axis.step = 1;
    if (to_ticks) {
        axis.low = floor(low / axis.step + 1e-9) * axis.step;
        axis.high = ceil(high / axis.step - 1e-9) * axis.step;
    }
    return axis;
}

static int axis_ticks(const Axis *axis)
{
    return (int)(floor(axis->high / axis->step + 1e-9) - ceil(axis->low / axis->step - 1e-9)) + 1;
}

static double axis_tick(const Axis *axis, int i)
{
    return (ceil(axis->low / axis->step - 1e-9) + i) * axis->step;
}

/* The part of the way from low to high, 0..1. */
static double axis_part(const Axis *axis, double value)
{
    return (value - axis->low) / (axis->high - axis->low);
}

enum { NUMBER_BYTES = 48 };

/* "12,500", "0.05", "−3", "2e−5": as many digits as tell the ticks apart, a true minus sign. */
static void format_tick(const Axis *axis, double value, char text[NUMBER_BYTES])
{
    double largest = fmax(fabs(axis->low), fabs(axis->high));
    char number[NUMBER_BYTES];
    if (fabs(value) < axis->step / 2) value = 0; /* not -0 */
    if (largest >= 1e9 || axis->step < 1e-4) {
        int digits = (int)(floor(log10(largest)) - floor(log10(axis->step))) + 1;
        snprintf(number, sizeof number, "%.*g", digits < 1 ? 1 : digits, value);
    } else {
        int decimals = (int)ceil(-log10(axis->step) - 1e-9);
        snprintf(number, sizeof number, "%.*f", decimals > 0 ? decimals : 0, value);
    }
    size_t whole = strspn(number, "-0123456789"), length = 0;
    bool plain = !strchr(number, 'e') && largest >= 1e4;
    for (size_t i = 0; number[i] && length < NUMBER_BYTES - 4; i++) {
        bool filler = number[i] == '+' || (number[i] == '0' && i >= 2 && number[i - 2] == 'e'); /* of e+09 */
        if (number[i] == '-') {
            memcpy(text + length, "\u2212", 3);
            length += 3;
        } else if (!filler) {
            text[length++] = number[i];
        }
        if (plain && i + 1 < whole && (whole - i) % 3 == 1 && number[i] != '-') text[length++] = ',';
    }
    text[length] = '\0';
}

/* ---------------------------------------------------------------------------------------------------------- drawing */

/* The colours of Okabe and Ito (2008), which people with any kind of colour vision can tell apart, without the yellow,
 * which is too faint for a line on white. The numbers of colours, dashes and marks share no factor: 140 series differ.
 * The classes s0, s1, … get their colour on a dark page from the style sheet. */
static const char *const COLOURS[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"};
static const char *const DASHES[] = {NULL, "7 4", "2 3", "10 3 2 3"};
enum { N_COLOURS = 7, N_DASHES = 4, N_MARKS = 5 };

static const char FONT[] = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif";

/* All lengths are in pixels of the viewBox. A character's width is an estimate: SVG does not tell it. */
enum { WIDTH = 720, MARGIN = 16, PLOT_HEIGHT = 300, LABEL_SPACING = 20, SAMPLE_WIDTH = 46, MANY_POINTS = 30 };
static const double CHARACTER = 6.9, TITLE_CHARACTER = 9.2;
enum { LONGEST_NAME = 28 }; /* characters; what is longer is cut, the whole name being in the tooltip */

typedef struct {
    const Plot *plot;
    Axis x, y;
    double left, right, top, bottom; /* the plane */
    double height;                   /* of the picture */
    int width;
    double *label_y; /* [count]: where the names stand, right of the plane */
    bool empty;      /* there is nothing to draw in the plane */
} Frame;

/* A millionth of a pixel: coordinates are printed with one decimal, and one that lies half between two shall go the
 * same way whatever a compiler's arithmetic makes of its last bit. */
static const double OFF_HALVES = 1e-6;

static double pixel_x(const Frame *frame, double x)
{
    enum { INSET = 10 }; /* so that marks do not lie on the border */
    return frame->left + INSET + axis_part(&frame->x, x) * (frame->right - frame->left - 2 * INSET) + OFF_HALVES;
}

static double pixel_y(const Frame *frame, double y)
{
    return frame->bottom - axis_part(&frame->y, y) * (frame->bottom - frame->top) + OFF_HALVES;
}

static double spread_at(const PlotSeries *series, size_t i)
{
    return series->spread && is_drawn(series->spread[i], 0) ? fabs(series->spread[i]) : 0;
}

typedef struct {
    double low, high;
} Extent;

static void extent_add(Extent *extent, double value)
{
    extent->low = fmin(extent->low, value);
    extent->high = fmax(extent->high, value);
}

static void choose_axes(Frame *frame)
{
    Extent x = {INFINITY, -INFINITY}, y = x;
    bool whole = true, ranged = frame->plot->y_low < frame->plot->y_high;
    for (size_t s = 0; s < frame->plot->count; s++) {
        const PlotSeries *series = &frame->plot->series[s];
        for (size_t i = 0; i < series->n; i++) {
            if (!is_drawn(series->x[i], series->y[i])) continue;
            extent_add(&x, series->x[i]);
            double spread = ranged ? 0 : spread_at(series, i); /* percentages do not leave 0..100 for a band */
            extent_add(&y, series->y[i] - spread);
            extent_add(&y, series->y[i] + spread);
            whole &= series->x[i] == floor(series->x[i]);
        }
    }
    frame->empty = x.low > x.high;
    if (ranged) {
        extent_add(&y, frame->plot->y_low);
        extent_add(&y, frame->plot->y_high);
    }
    frame->x = frame->empty ? (Axis){0, 1, 1} : axis_over(x.low, x.high, 7, whole, frame->plot->points);
    frame->y = frame->empty ? (Axis){0, 1, 1} : axis_over(y.low, y.high, 6, false, true);
}

/* The height at which a curve ends; the bottom when there is none. */
static double end_of(const Frame *frame, const PlotSeries *series)
{
    for (size_t i = series->n; i > 0; i--)
        if (is_drawn(series->x[i - 1], series->y[i - 1])) return pixel_y(frame, series->y[i - 1]);
    return frame->bottom;
}

/* The name of a curve stands where it ends, if need be a little higher or lower so that the names do not overlap; the
 * names of paths, which end anywhere, stand one under the other. -1: no memory. */
static int place_names(Frame *frame)
{
    size_t count = frame->plot->count, *order = calloc(count + 1, sizeof *order);
    frame->label_y = calloc(count + 1, sizeof *frame->label_y);
    if (!order || !frame->label_y) {
        free(order);
        return -1;
    }
    for (size_t s = 0; s < count; s++) {
        size_t place = s;
        frame->label_y[s] = frame->plot->points ? frame->top : end_of(frame, &frame->plot->series[s]);
        while (place > 0 && frame->label_y[order[place - 1]] > frame->label_y[s]) {
            order[place] = order[place - 1];
            place--;
        }
        order[place] = s;
    }
    double highest = frame->top + 8, lowest = frame->bottom - 6;
    for (size_t i = 0; i < count; i++) { /* down, … */
        frame->label_y[order[i]] = fmax(frame->label_y[order[i]], highest);
        highest = frame->label_y[order[i]] + LABEL_SPACING;
    }
    for (size_t i = count; i > 0; i--) { /* … and up again, what does not fit */
        frame->label_y[order[i - 1]] = fmin(frame->label_y[order[i - 1]], lowest);
        lowest = frame->label_y[order[i - 1]] - LABEL_SPACING;
    }
    free(order);
    return 0;
}

static int frame_lay_out_wide(Frame *frame, const Plot *plot, int width)
{
    size_t longest_name = 0, longest_tick = 0;
    char tick[NUMBER_BYTES];
    *frame = (Frame){.plot = plot, .width = width};
    choose_axes(frame);
    for (int i = 0; !frame->empty && i < axis_ticks(&frame->y); i++) {
        format_tick(&frame->y, axis_tick(&frame->y, i), tick);
        if (text_columns(tick) > longest_tick) longest_tick = text_columns(tick);
    }
    for (size_t s = 0; s < plot->count; s++) {
        size_t columns = text_columns(text_or_empty(plot->series[s].name));
        if (columns > longest_name) longest_name = columns;
    }
    if (longest_name > LONGEST_NAME) longest_name = LONGEST_NAME;
    double height = (double)plot->count * LABEL_SPACING;
    frame->left = MARGIN + 8 + (double)longest_tick * CHARACTER;
    frame->right = width - MARGIN - 8 - (longest_name ? SAMPLE_WIDTH + (double)longest_name * CHARACTER : 0);
    frame->top = MARGIN + 6 + (*text_or_empty(plot->title) ? 24 : 0) + (*text_or_empty(plot->y_label) ? 26 : 0);
    frame->bottom = frame->top + fmax(PLOT_HEIGHT, height);
    frame->height = frame->bottom + 32 + (*text_or_empty(plot->x_label) ? 22 : 0);
    return place_names(frame);
}

static int frame_lay_out(Frame *frame, const Plot *plot)
{
    return frame_lay_out_wide(frame, plot, WIDTH);
}

/* At most so many columns of a text, the last of them "…" if it is cut. */
static void put_fitted(TextBuffer *out, const char *text, size_t columns)
{
    TextBuffer cut = {0};
    if (text_columns(text) <= columns) {
        text_put_xml(out, text);
        return;
    }
    for (size_t used = 0; used < columns;) {
        char one[5] = "";
        const char *from = text;
        int32_t c = text_next(&text);
        if (c == 0) break;
        memcpy(one, from, (size_t)(text - from));
        used += text_columns(one);
        if (used < columns) text_put_code(&cut, c);
    }
    text_put(&cut, "…");
    char *shortened = text_take(&cut);
    text_put_xml(out, text_or_empty(shortened));
    out->failed |= !shortened;
    free(shortened);
}

static void put_line(TextBuffer *out, double x1, double y1, double x2, double y2)
{
    text_put_format(out, "<path d=\"M%.1f %.1fL%.1f %.1f\"/>\n", x1, y1, x2, y2);
}

static void draw_axes(TextBuffer *out, const Frame *frame)
{
    char tick[NUMBER_BYTES];
    text_put(out, "<g class=\"grid\" stroke=\"#e4e4e4\">\n");
    for (int i = 0; i < axis_ticks(&frame->y); i++) {
        double y = pixel_y(frame, axis_tick(&frame->y, i));
        put_line(out, frame->left, y, frame->right, y);
    }
    for (int i = 0; frame->plot->points && i < axis_ticks(&frame->x); i++) {
        double x = pixel_x(frame, axis_tick(&frame->x, i));
        put_line(out, x, frame->top, x, frame->bottom);
    }
    text_put(out, "</g>\n<g class=\"axis\" stroke=\"#8a8a8a\">\n");
    put_line(out, frame->left, frame->bottom, frame->right, frame->bottom);
    if (frame->y.low < 0 && frame->y.high > 0)
        put_line(out, frame->left, pixel_y(frame, 0), frame->right, pixel_y(frame, 0));
    for (int i = 0; !frame->empty && i < axis_ticks(&frame->x); i++) {
        double x = pixel_x(frame, axis_tick(&frame->x, i));
        put_line(out, x, frame->bottom, x, frame->bottom + 4);
    }
    text_put(out, "</g>\n<g class=\"muted\" fill=\"#5c5c5c\" font-size=\"12\" text-anchor=\"middle\">\n");
    for (int i = 0; !frame->empty && i < axis_ticks(&frame->x); i++) {
        format_tick(&frame->x, axis_tick(&frame->x, i), tick);
        text_put_format(out, "<text x=\"%.1f\" y=\"%.1f\">%s</text>\n", pixel_x(frame, axis_tick(&frame->x, i)),
                        frame->bottom + 19, tick);
    }
    if (frame->empty)
        text_put_format(out, "<text x=\"%.1f\" y=\"%.1f\">no data</text>\n", (frame->left + frame->right) / 2,
                        (frame->top + frame->bottom) / 2);
    text_put(out, "</g>\n<g class=\"muted\" fill=\"#5c5c5c\" font-size=\"12\" text-anchor=\"end\">\n");
    for (int i = 0; !frame->empty && i < axis_ticks(&frame->y); i++) {
        format_tick(&frame->y, axis_tick(&frame->y, i), tick);
        text_put_format(out, "<text x=\"%.1f\" y=\"%.1f\">%s</text>\n", frame->left - 8,
                        pixel_y(frame, axis_tick(&frame->y, i)) + 4, tick);
    }
    text_put(out, "</g>\n");
}

static void draw_titles(TextBuffer *out, const Frame *frame)
{
    const Plot *plot = frame->plot;
    if (*text_or_empty(plot->title)) {
        text_put_format(out,
                        "<text class=\"ink\" fill=\"#1a1a1a\" x=\"%d\" y=\"30\" font-size=\"17\" font-weight=\"600\">",
                        MARGIN);
        put_fitted(out, plot->title, (size_t)((frame->width - 2 * MARGIN) / TITLE_CHARACTER));
        text_put(out, "</text>\n");
    }
    if (*text_or_empty(plot->y_label)) {
        text_put_format(out, "<text class=\"muted\" fill=\"#5c5c5c\" x=\"%d\" y=\"%.1f\" font-size=\"13\">", MARGIN,
                        frame->top - 17);
        put_fitted(out, plot->y_label, (size_t)((frame->width - 2 * MARGIN) / CHARACTER));
        text_put(out, "</text>\n");
    }
    if (*text_or_empty(plot->x_label)) {
        text_put_format(out,
                        "<text class=\"muted\" fill=\"#5c5c5c\" x=\"%.1f\" y=\"%.1f\" font-size=\"13\" "
                        "text-anchor=\"middle\">",
                        (frame->left + frame->right) / 2, frame->bottom + 41);
        put_fitted(out, plot->x_label, (size_t)((frame->right - frame->left) / CHARACTER));
        text_put(out, "</text>\n");
    }
}

/* Circle, square, triangle, diamond, triangle on its head; about equally large to the eye. */
static void draw_mark(TextBuffer *out, size_t series, double x, double y, double r, bool hollow)
{
    const char *style = hollow ? "class=\"hollow\" fill=\"#fff\" stroke=\"currentColor\" stroke-width=\"2\""
                               : "class=\"mark\" fill=\"currentColor\" stroke=\"#fff\" stroke-width=\"1\"";
    double q = r * 0.89, t = r * 1.2; /* half a square; what a diamond and a triangle need more */
    switch (series % N_MARKS) {
    case 0:
        text_put_format(out, "<circle %s cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>\n", style, x, y, r);
        break;
    case 1:
        text_put_format(out, "<path %s d=\"M%.1f %.1fh%.1fv%.1fh%.1fz\"/>\n", style, x - q, y - q, 2 * q, 2 * q,
                        -2 * q);
        break;
    case 3:
        text_put_format(out, "<path %s d=\"M%.1f %.1fl%.1f %.1fl%.1f %.1fl%.1f %.1fz\"/>\n", style, x, y - t, t, t, -t,
                        t, -t, -t);
        break;
    default: /* 2, and 4 on its head */
        if (series % N_MARKS == 4) r = -r;
        text_put_format(out, "<path %s d=\"M%.1f %.1fL%.1f %.1fH%.1fz\"/>\n", style, x, y - 1.1 * r, x + t, y + 0.8 * r,
                        x - t);
    }
}

static bool is_drawn_at(const PlotSeries *series, size_t i)
{
    return i < series->n && is_drawn(series->x[i], series->y[i]);
}

/* Between gaps: [begin, end) with begin < end, the next run at or after `from`; begin = n when there is none. */
static size_t next_run(const PlotSeries *series, size_t from, size_t *end)
{
    while (from < series->n && !is_drawn_at(series, from)) from++;
    for (*end = from; is_drawn_at(series, *end);) ++*end;
    return from;
}

/* Where an end of a band or bar is drawn: it is cut where the plane ends. */
static double pixel_y_cut(const Frame *frame, double y)
{
    return pixel_y(frame, fmin(fmax(y, frame->y.low), frame->y.high));
}

/* One closed path for each run of a curve: along the upper edge and back along the lower one. A single point and the
 * marks of a path have bars instead. */
static void draw_spread(TextBuffer *out, const Frame *frame, const PlotSeries *series)
{
    size_t end;
    if (!series->spread) return;
    for (size_t begin = next_run(series, 0, &end); begin < series->n; begin = next_run(series, end, &end)) {
        bool bars = frame->plot->points || end - begin == 1;
        text_put(out, bars ? "<path stroke=\"currentColor\" stroke-opacity=\".6\" d=\""
                           : "<path fill=\"currentColor\" fill-opacity=\".14\" d=\"");
        for (size_t i = begin; i < end; i++) {
            double x = pixel_x(frame, series->x[i]), spread = spread_at(series, i);
            double high = pixel_y_cut(frame, series->y[i] + spread), low = pixel_y_cut(frame, series->y[i] - spread);
            if (bars)
                text_put_format(out, "M%.1f %.1fV%.1f", x, high, low);
            else
                text_put_format(out, "%s%.1f %.1f", i == begin ? "M" : "L", x, high);
        }
        for (size_t i = end; !bars && i > begin; i--)
            text_put_format(out, "L%.1f %.1f", pixel_x(frame, series->x[i - 1]),
                            pixel_y_cut(frame, series->y[i - 1] - spread_at(series, i - 1)));
        text_put(out, bars ? "\"/>\n" : "z\"/>\n");
    }
}

/* Dashes would only blur a curve of many points, and its gaps. */
static void put_stroke(TextBuffer *out, const Frame *frame, size_t s)
{
    bool dashed = DASHES[s % N_DASHES] && frame->plot->series[s].n <= MANY_POINTS;
    text_put(out, "<path fill=\"none\" stroke=\"currentColor\" stroke-width=\"2\" stroke-linejoin=\"round\"");
    if (dashed) text_put_format(out, " stroke-dasharray=\"%s\"", DASHES[s % N_DASHES]);
    text_put(out, " d=\"");
}

/* A curve of many points has a mark at every eighth part of it only, to be told from the others without colours. */
static void draw_series(TextBuffer *out, const Frame *frame, size_t s)
{
    const PlotSeries *series = &frame->plot->series[s];
    size_t end, stride = series->n <= MANY_POINTS || frame->plot->points ? 1 : (series->n + 7) / 8;
    bool first = true;
    draw_spread(out, frame, series);
    for (size_t begin = next_run(series, 0, &end); begin < series->n; begin = next_run(series, end, &end)) {
        if (end - begin == 1) continue;
        put_stroke(out, frame, s);
        for (size_t i = begin; i < end; i++)
            text_put_format(out, "%s%.1f %.1f", i == begin ? "M" : "L", pixel_x(frame, series->x[i]),
                            pixel_y(frame, series->y[i]));
        text_put(out, "\"/>\n");
    }
    for (size_t i = 0; i < series->n; i++) {
        bool alone = (i == 0 || !is_drawn_at(series, i - 1)) && !is_drawn_at(series, i + 1);
        if (!is_drawn_at(series, i) || (!alone && i % stride != stride / 2)) continue;
        bool hollow = frame->plot->points && first && !alone;
        draw_mark(out, s, pixel_x(frame, series->x[i]), pixel_y(frame, series->y[i]), frame->plot->points ? 5 : 4,
                  hollow);
        first = false;
    }
}

/* A piece of the line with its mark, and the name. */
static void draw_name(TextBuffer *out, const Frame *frame, size_t s)
{
    const char *name = text_or_empty(frame->plot->series[s].name);
    double x = frame->right + 10, y = frame->label_y[s];
    if (!*name) return;
    put_stroke(out, frame, s);
    text_put_format(out, "M%.1f %.1fh%d\"/>\n", x, y, SAMPLE_WIDTH - 14);
    draw_mark(out, s, x + (SAMPLE_WIDTH - 14) / 2.0, y, 4, false);
    text_put_format(out, "<text class=\"ink\" fill=\"#1a1a1a\" x=\"%.1f\" y=\"%.1f\" font-size=\"13\">",
                    x + SAMPLE_WIDTH - 8, y + 4.5);
    put_fitted(out, name, LONGEST_NAME);
    text_put(out, "</text>\n");
}

static void draw_plot(TextBuffer *out, const Frame *frame)
{
    const Plot *plot = frame->plot;
    text_put_format(out,
                    "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" "
                    "viewBox=\"0 0 %d %.0f\" role=\"img\" font-family=\"%s\">\n<title>",
                    frame->width, frame->height, frame->width, frame->height, FONT);
    text_put_xml(out, text_or_empty(plot->title));
    text_put(out, "</title>\n<desc>");
    text_put_xml(out, text_or_empty(plot->caption));
    text_put(out, "</desc>\n<rect class=\"paper\" width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n");
    draw_titles(out, frame);
    draw_axes(out, frame);
    for (size_t s = 0; s < plot->count; s++) {
        text_put_format(out, "<g class=\"s%zu\" color=\"%s\">\n<title>", s % N_COLOURS, COLOURS[s % N_COLOURS]);
        text_put_xml(out, text_or_empty(plot->series[s].name));
        text_put(out, "</title>\n");
        draw_series(out, frame, s);
        draw_name(out, frame, s);
        text_put(out, "</g>\n");
    }
    text_put(out, "</svg>\n");
}

/* What makes the same picture legible on a dark screen: the colours by name, and the classes of what is drawn. */
static const char PLOT_STYLE[] =
    ":root{color-scheme:light dark;--paper:#fff;--ink:#1a1a1a;--muted:#5c5c5c;--grid:#e4e4e4;--axis:#8a8a8a;"
    "--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#cc79a7;--s4:#e69f00;--s5:#56b4e9;--s6:#000}\n"
    "@media(prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#ececec;--muted:#a8adb3;--grid:#2e3238;"
    "--axis:#767c84;--s0:#3d9be0;--s1:#f07f3c;--s2:#2fc498;--s3:#e29bc3;--s4:#f0b43c;--s5:#8fd0f5;--s6:#f4f4f4}}\n"
    ".plot .paper{fill:var(--paper)}.plot .ink{fill:var(--ink)}.plot .muted{fill:var(--muted)}\n"
    ".plot .grid{stroke:var(--grid)}.plot .axis{stroke:var(--axis)}\n"
    ".plot .mark{stroke:var(--paper)}.plot .hollow{fill:var(--paper)}\n"
    ".plot .s0{color:var(--s0)}.plot .s1{color:var(--s1)}.plot .s2{color:var(--s2)}.plot .s3{color:var(--s3)}"
    ".plot .s4{color:var(--s4)}.plot .s5{color:var(--s5)}.plot .s6{color:var(--s6)}\n";

char *plot_svg(const Plot *plot)
{
    TextBuffer out = {0};
    Frame frame;
    if (frame_lay_out(&frame, plot) < 0)
        out.failed = true;
    else
        draw_plot(&out, &frame);
    free(frame.label_y);
    return text_take(&out);
}

/* To be freed. alone: outside a page, whose style sheet it then brings along. */
static char *panels_svg(const Plot *plots, size_t count, int width, bool alone)
{
    TextBuffer out = {0}, panels = {0};
    double height = 0;
    for (size_t i = 0; i < count; i++) {
        Frame frame;
        text_put_format(&panels, "<g transform=\"translate(%zu 0)\">\n", i * (size_t)width);
        if (frame_lay_out_wide(&frame, &plots[i], width) < 0)
            panels.failed = true;
        else
            draw_plot(&panels, &frame);
        text_put(&panels, "</g>\n");
        height = fmax(height, frame.height);
        free(frame.label_y);
    }
    char *drawn = text_take(&panels);
    out.failed |= !drawn;
    text_put_format(&out,
                    "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" width=\"%zu\" height=\"%.0f\" "
                    "viewBox=\"0 0 %zu %.0f\">\n",
                    count * (size_t)width, height, count * (size_t)width, height);
    if (alone)
        text_put_format(&out,
                        "<style>\n%s</style>\n<rect class=\"paper\" width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
                        PLOT_STYLE);
    text_put(&out, text_or_empty(drawn));
    text_put(&out, "</svg>\n");
    free(drawn);
    return text_take(&out);
}

char *plots_svg(const Plot *plots, size_t count, int width)
{
    return panels_svg(plots, count, width, true);
}

/* ---------------------------------------------------------------------------------------------------------- figures */

static void put_json_member(TextBuffer *out, const char *name, const char *value)
{
    text_put_json(out, name);
    text_put(out, ": ");
    text_put_json(out, text_or_empty(value));
    text_put(out, ",\n");
}

/* JSON has no NaN and no infinity: null. */
static void put_json_numbers(TextBuffer *out, const char *name, const double *values, size_t n)
{
    text_put_format(out, ",\n \"%s\": [", name);
    for (size_t i = 0; i < n; i++) {
        if (i > 0) text_put(out, ",");
        if (isfinite(values[i]))
            text_put_number(out, values[i]);
        else
            text_put(out, "null");
    }
    text_put(out, "]");
}

/* "figure" comes first: it is what report_write knows figures by. */
static char *figure_json(const Plot *plot)
{
    TextBuffer out = {0};
    text_put(&out, "{\"figure\": 1,\n");
    put_json_member(&out, "title", plot->title);
    put_json_member(&out, "x_label", plot->x_label);
    put_json_member(&out, "y_label", plot->y_label);
    put_json_member(&out, "caption", plot->caption);
    text_put_format(&out, "\"points\": %s,\n", plot->points ? "true" : "false");
    if (plot->y_low < plot->y_high) {
        text_put(&out, "\"y_low\": ");
        text_put_number(&out, plot->y_low);
        text_put(&out, ", \"y_high\": ");
        text_put_number(&out, plot->y_high);
        text_put(&out, ",\n");
    }
    text_put(&out, "\"series\": [");
    for (size_t s = 0; s < plot->count; s++) {
        const PlotSeries *series = &plot->series[s];
        text_put(&out, s > 0 ? ",\n{\"name\": " : "\n{\"name\": ");
        text_put_json(&out, text_or_empty(series->name));
        put_json_numbers(&out, "x", series->x, series->n);
        put_json_numbers(&out, "y", series->y, series->n);
        if (series->spread) put_json_numbers(&out, "spread", series->spread, series->n);
        text_put(&out, "}");
    }
    text_put(&out, "\n]}\n");
    return text_take(&out);
}

static void put_csv_number(TextBuffer *out, double value)
{
    text_put(out, ",");
    if (isfinite(value)) text_put_number(out, value);
}

static char *figure_csv(const Plot *plot)
{
    TextBuffer out = {0};
    bool spread = false;
    for (size_t s = 0; s < plot->count; s++) spread |= plot->series[s].spread != NULL;
    text_put(&out, spread ? "series,x,y,spread\n" : "series,x,y\n");
    for (size_t s = 0; s < plot->count; s++) {
        const PlotSeries *series = &plot->series[s];
        for (size_t i = 0; i < series->n; i++) {
            text_put_csv(&out, text_or_empty(series->name));
            put_csv_number(&out, series->x[i]);
            put_csv_number(&out, series->y[i]);
            if (spread) put_csv_number(&out, series->spread ? series->spread[i] : NAN);
            text_put(&out, "\n");
        }
    }
    return text_take(&out);
}

static int no_memory(Error *error, const char *path)
{
    return error_set(error, EXIT_FAILED, "%.700s: no memory", path);
}

/* Writes DIRECTORY/NAME.SUFFIX and frees the text; NULL: there was no memory for it. */
static int write_and_free(const char *directory, const char *name, const char *suffix, char *text, Error *error)
{
    TextBuffer file = {0};
    text_put(&file, name);
    text_put(&file, suffix);
    char *full = text_take(&file), *path = full ? path_join(directory, full) : NULL;
    int status = path && text ? file_write_text(path, text, error) : no_memory(error, directory);
    free(path);
    free(full);
    free(text);
    return status;
}

int figure_write(const char *directory, const char *name, const Plot *plot, Error *error)
{
    int status = directory_create(directory, error);
    if (!status) status = write_and_free(directory, name, ".svg", plot_svg(plot), error);
    if (!status) status = write_and_free(directory, name, ".csv", figure_csv(plot), error);
    if (!status) status = write_and_free(directory, name, ".json", figure_json(plot), error);
    return status;
}

struct Figure {
    Plot plot;
    PlotSeries *series; /* [plot.count] */
    double *numbers;    /* of all series */
    cJSON *json;        /* the texts are in it */
};

void figure_free(Figure *figure)
{
    if (!figure) return;
    cJSON_Delete(figure->json);
    free(figure->series);
    free(figure->numbers);
    free(figure);
}

const Plot *figure_plot(const Figure *figure)
{
    return &figure->plot;
}

static const cJSON *figure_member(const cJSON *object, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

static int bad_figure(const char *path, const char *expected, Error *error)
{
    return error_set(error, EXIT_FAILED, "%.700s: not a figure (expected %s)", path, expected);
}

/* The text called `name`; "" when there is none, NULL when it is something else. */
static const char *text_member(const cJSON *object, const char *name)
{
    const cJSON *item = figure_member(object, name);
    return item ? cJSON_GetStringValue(item) : "";
}

static bool are_numbers_or_null(const cJSON *array)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        if (!cJSON_IsNumber(item) && !cJSON_IsNull(item)) return false;
    }
    return cJSON_IsArray(array);
}

/* Copies the numbers and returns where they were copied to; *next is behind them. */
static const double *copy_numbers(double **next, const cJSON *array)
{
    double *numbers = *next;
    const cJSON *item;
    cJSON_ArrayForEach(item, array) * (*next)++ = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    return numbers;
}

/* Checks the series and counts all their numbers. */
static int check_series(const cJSON *list, size_t *n_numbers, const char *path, Error *error)
{
    const cJSON *item;
    *n_numbers = 0;
    if (!cJSON_IsArray(list)) return bad_figure(path, "a list \"series\"", error);
    cJSON_ArrayForEach(item, list)
    {
        const cJSON *x = figure_member(item, "x"), *y = figure_member(item, "y"),
                    *spread = figure_member(item, "spread");
        if (!cJSON_IsObject(item) || !text_member(item, "name")) return bad_figure(path, "series with a name", error);
        if (!are_numbers_or_null(x) || !are_numbers_or_null(y) || (spread && !are_numbers_or_null(spread)))
            return bad_figure(path, "x, y and spread as lists of numbers", error);
        int n = cJSON_GetArraySize(x);
        if (cJSON_GetArraySize(y) != n || (spread && cJSON_GetArraySize(spread) != n))
            return bad_figure(path, "equally long x, y and spread", error);
        *n_numbers += 3 * (size_t)n;
    }
    return 0;
}

/* Fills the figure from figure->json. */
static int figure_fill(Figure *figure, const char *path, Error *error)
{
    const cJSON *json = figure->json, *list = figure_member(json, "series"), *points = figure_member(json, "points"),
                *low = figure_member(json, "y_low"), *high = figure_member(json, "y_high"), *item;
    Plot *plot = &figure->plot;
    size_t n_numbers;
    if (!json) return bad_figure(path, "JSON", error);
    if (!cJSON_IsNumber(figure_member(json, "figure"))) return bad_figure(path, "a number \"figure\"", error);
    plot->title = text_member(json, "title");
    plot->x_label = text_member(json, "x_label");
    plot->y_label = text_member(json, "y_label");
    plot->caption = text_member(json, "caption");
    if (!plot->title || !plot->x_label || !plot->y_label || !plot->caption)
        return bad_figure(path, "title, labels and caption as texts", error);
    if (points && !cJSON_IsBool(points)) return bad_figure(path, "\"points\" true or false", error);
    plot->points = cJSON_IsTrue(points);
    if ((low && !cJSON_IsNumber(low)) || (high && !cJSON_IsNumber(high)))
        return bad_figure(path, "numbers y_low and y_high", error);
    if (low && high) plot->y_low = low->valuedouble, plot->y_high = high->valuedouble;
    if (check_series(list, &n_numbers, path, error) < 0) return -1;
    figure->series = calloc((size_t)cJSON_GetArraySize(list) + 1, sizeof *figure->series);
    figure->numbers = malloc((n_numbers + 1) * sizeof *figure->numbers);
    if (!figure->series || !figure->numbers) return no_memory(error, path);
    plot->series = figure->series;
    double *next = figure->numbers;
    cJSON_ArrayForEach(item, list)
    {
        PlotSeries *series = &figure->series[plot->count++];
        series->name = text_member(item, "name");
        series->n = (size_t)cJSON_GetArraySize(figure_member(item, "x"));
        series->x = copy_numbers(&next, figure_member(item, "x"));
        series->y = copy_numbers(&next, figure_member(item, "y"));
        if (figure_member(item, "spread")) series->spread = copy_numbers(&next, figure_member(item, "spread"));
    }
    return 0;
}

static int figure_parse(const MappedFile *file, Figure **out, Error *error)
{
    const char *text = (const char *)file->data;
    Figure *figure = calloc(1, sizeof *figure);
    *out = NULL;
    if (!figure) return no_memory(error, file->path);
    if (utf8_valid_length(text, file->bytes) == file->bytes) figure->json = json_parse(text, file->bytes);
    if (figure_fill(figure, file->path, error) < 0) {
        figure_free(figure);
        return -1;
    }
    *out = figure;
    return 0;
}

int figure_read(const char *path, Figure **out, Error *error)
{
    MappedFile file;
    *out = NULL;
    if (mapped_file_open(&file, path, error) < 0) return -1;
    int status = figure_parse(&file, out, error);
    mapped_file_close(&file);
    return status;
}

/* ----------------------------------------------------------------------------------------------------------- tables */

/* The cells of a table, row after row, as texts in one block. */
typedef struct {
    char *block, **cells; /* [rows * columns]; NULL behind the end of a short row */
    size_t rows, columns;
} Grid;

/* Reads one cell at *at, writes it to *to with a NUL, moves both on, and returns what ended it: the separator, '\n' or
 * 0. Only CSV has quotes; what stands behind the closing one is taken as it is. */
static char read_cell(const char **at, char separator, char **to)
{
    const char *from = *at;
    if (separator == ',' && *from == '"') {
        for (from++; *from; *(*to)++ = *from++) {
            if (*from != '"') continue;
            if (*++from != '"') break; /* two stand for one */
        }
    }
    while (*from && *from != separator && *from != '\n') *(*to)++ = *from++;
    if (from > *at && from[-1] == '\r' && *from != separator) --*to;
    *(*to)++ = '\0';
    *at = *from ? from + 1 : from;
    return *from;
}

/* Fills grid->block, which is as long as the text, and counts rows and columns; if there are cells, they are set. */
static void grid_scan(Grid *grid, const char *csv, char separator)
{
    char *to = grid->block;
    size_t widest = 0;
    for (grid->rows = 0; *csv; grid->rows++) {
        size_t column = 0;
        for (char end = separator; end == separator; column++) {
            char *cell = to;
            end = read_cell(&csv, separator, &to);
            if (grid->cells) grid->cells[grid->rows * grid->columns + column] = cell;
        }
        if (column > widest) widest = column;
    }
    grid->columns = widest;
}

static void grid_free(Grid *grid)
{
    free(grid->block);
    free(grid->cells);
}

/* -1: no memory; the grid must be freed then too. */
static int grid_read(Grid *grid, const char *csv)
{
    size_t first_line = strcspn(csv, "\n");
    char separator = memchr(csv, '\t', first_line) ? '\t' : ',';
    *grid = (Grid){.block = malloc(strlen(csv) + 1)};
    if (!grid->block) return -1;
    grid_scan(grid, csv, separator);
    if (grid->columns > SIZE_MAX / sizeof(char *) / (grid->rows + 1)) return -1;
    grid->cells = calloc(grid->rows * grid->columns + 1, sizeof *grid->cells);
    if (!grid->cells) return -1;
    grid_scan(grid, csv, separator);
    return 0;
}

static const char *grid_cell(const Grid *grid, size_t row, size_t column)
{
    return text_or_empty(grid->cells[row * grid->columns + column]);
}

/* "47.65", "86.28 ± 0.50", "12%", "-" and nothing. */
static bool is_numeric(const char *text)
{
    char *end;
    if (!*text || strcmp(text, "-") == 0) return true;
    strtod(text, &end);
    if (end == text) return false;
    if (strncmp(end, " ± ", strlen(" ± ")) == 0) strtod(end + strlen(" ± "), &end);
    if (*end == '%') end++;
    return *end == '\0';
}

/* Numbers stand right, so that their digits stand under each other; a column of nothing but numbers, that is. */
static bool is_numeric_column(const Grid *grid, size_t column)
{
    for (size_t row = 1; row < grid->rows; row++)
        if (!is_numeric(grid_cell(grid, row, column))) return false;
    return grid->rows > 1;
}

static void put_row(TextBuffer *out, const Grid *grid, size_t row, const bool *numeric)
{
    const char *tag = row == 0 ? "th" : "td";
    text_put(out, "<tr>");
    for (size_t column = 0; column < grid->columns; column++) {
        text_put_format(out, numeric[column] ? "<%s class=\"number\">" : "<%s>", tag);
        text_put_xml(out, grid_cell(grid, row, column));
        text_put_format(out, "</%s>", tag);
    }
    text_put(out, "</tr>\n");
}

/* grid_read, and which columns are numeric: to be freed, NULL: no memory. */
static bool *grid_open(Grid *grid, const char *csv)
{
    bool *numeric = grid_read(grid, csv) == 0 ? calloc(grid->columns + 1, sizeof *numeric) : NULL;
    for (size_t column = 0; numeric && column < grid->columns; column++)
        numeric[column] = is_numeric_column(grid, column);
    return numeric;
}

void page_table(TextBuffer *page, const char *csv)
{
    Grid grid;
    bool *numeric = grid_open(&grid, csv);
    text_put(page, "<div class=\"wide\"><table>\n");
    for (size_t row = 0; numeric && row < grid.rows; row++) {
        if (row == 0) text_put(page, "<thead>");
        put_row(page, &grid, row, numeric);
        if (row == 0) text_put(page, "</thead><tbody>\n");
    }
    text_put(page, numeric && grid.rows ? "</tbody></table></div>\n" : "</table></div>\n");
    page->failed |= !numeric;
    free(numeric);
    grid_free(&grid);
}

static void put_padded(TextBuffer *out, const char *text, size_t width, bool right)
{
    size_t columns = text_columns(text), spaces = columns < width ? width - columns : 0;
    if (right) text_put_format(out, "%*s", (int)spaces, "");
    text_put_plain(out, text);
    if (!right) text_put_format(out, "%*s", (int)spaces, "");
}

char *table_text(const char *csv)
{
    Grid grid;
    TextBuffer out = {0};
    bool *numeric = grid_open(&grid, csv);
    size_t *widths = numeric ? calloc(grid.columns + 1, sizeof *widths) : NULL;
    for (size_t i = 0; widths && i < grid.rows * grid.columns; i++) {
        size_t *width = &widths[i % grid.columns], columns = text_columns(text_or_empty(grid.cells[i]));
        if (columns > *width) *width = columns;
    }
    for (size_t row = 0; widths && row < grid.rows; row++) {
        for (size_t column = 0; column < grid.columns; column++) {
            bool last = column + 1 == grid.columns; /* no spaces at the end of a line */
            put_padded(&out, grid_cell(&grid, row, column), last && !numeric[column] ? 0 : widths[column],
                       numeric[column]);
            text_put(&out, last ? "\n" : "  ");
        }
    }
    out.failed |= !widths;
    free(widths);
    free(numeric);
    grid_free(&grid);
    return text_take(&out);
}

/* ------------------------------------------------------------------------------------------------------------- page */

static const char PAGE_STYLE[] =
    "body{margin:0;background:var(--paper);color:var(--ink);line-height:1.55;"
    "font-family:system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif}\n"
    "main{max-width:46rem;margin:0 auto;padding:3rem 1.25rem 4rem}\n"
    "h1{font-size:1.75rem;line-height:1.25;margin:0 0 1rem}\n"
    "h2{font-size:1.1rem;margin:2.5rem 0 .6rem}\n"
    "h3{font-size:1rem;margin:1.8rem 0 .5rem}\n"
    "p{margin:0 0 1rem;overflow-wrap:anywhere}\n"
    ".wide{overflow-x:auto;margin:0 0 1.25rem}\n"
    "table{border-collapse:collapse;font-size:.9rem;white-space:nowrap}\n"
    "th,td{text-align:left;padding:.35rem .7rem}\n"
    "th:first-child,td:first-child{padding-left:0}\n"
    "th{color:var(--muted);font-weight:600;border-bottom:1px solid var(--axis);white-space:normal;"
    "vertical-align:bottom}\n"
    "td{border-bottom:1px solid var(--grid)}\n"
    "td:not(.number){white-space:normal;min-width:7.5rem}\n"
    "th.number,td.number{text-align:right;font-variant-numeric:tabular-nums}\n"
    ".texts th{border-color:var(--grid);vertical-align:top;min-width:7rem}\n"
    ".texts td{white-space:pre-wrap;overflow-wrap:anywhere}\n"
    "pre{margin:0 0 1rem;padding:.7rem .9rem;border:1px solid var(--grid);border-radius:4px;font-size:.85rem;"
    "white-space:pre-wrap;overflow-wrap:anywhere}\n"
    "summary{cursor:pointer;margin:0 0 .6rem}\n"
    "figure{margin:2.5rem 0 2.5rem -1rem}\n" /* the pictures have a margin of their own */
    "figcaption{color:var(--muted);font-size:.9rem;margin:.4rem 0 0 1rem}\n"
    "figure>.plot{display:block;max-width:100%;height:auto}\n" /* and not the panels in it */
    ".plot .paper{fill:none}\n"
    "@media(min-width:50rem){.wide{width:max-content;min-width:100%;max-width:calc(50vw + 21rem)}}\n" /* to the edge */
    "@media(max-width:40rem){figure{overflow-x:auto}figure>.plot{max-width:none}}\n"; /* a phone: scrolled, not shrunk */

void page_begin(TextBuffer *page, const char *title)
{
    text_put(page, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                   "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>");
    text_put_xml(page, title);
    text_put_format(page, "</title>\n<style>\n%s%s</style>\n</head>\n<body>\n<main>\n", PLOT_STYLE, PAGE_STYLE);
    page_heading(page, 1, title);
}

void page_heading(TextBuffer *page, int level, const char *text)
{
    text_put_format(page, "<h%d>", level);
    text_put_xml(page, text);
    text_put_format(page, "</h%d>\n", level);
}

void page_paragraphs(TextBuffer *page, const char *text)
{
    while (*text) {
        const char *end = strstr(text, "\n\n");
        size_t length = end ? (size_t)(end - text) : strlen(text);
        char *paragraph = strndup(text, length);
        page->failed |= !paragraph;
        text_put(page, "<p>");
        text_put_xml(page, text_or_empty(paragraph));
        text_put(page, "</p>\n");
        free(paragraph);
        for (text += length; *text == '\n';) text++;
    }
}

/* Frees the picture. */
static void put_figure(TextBuffer *page, char *svg, const char *caption)
{
    page->failed |= !svg;
    text_put(page, "<figure>\n");
    text_put(page, text_or_empty(svg));
    if (*text_or_empty(caption)) {
        text_put(page, "<figcaption>");
        text_put_xml(page, caption);
        text_put(page, "</figcaption>\n");
    }
    text_put(page, "</figure>\n");
    free(svg);
}

void page_figure(TextBuffer *page, const Plot *plot)
{
    put_figure(page, plot_svg(plot), plot->caption);
}

void page_panels(TextBuffer *page, const Plot *plots, size_t count)
{
    put_figure(page, panels_svg(plots, count, WIDTH / (int)count, false), plots->caption);
}

int page_write(TextBuffer *page, const char *directory, Error *error)
{
    text_put(page, "</main>\n</body>\n</html>\n");
    return write_and_free(directory, "report", ".html", text_take(page), error);
}

/* Other JSON files lie in the same directory. A figure is known by how it begins, so that a damaged one is noticed. */
static bool begins_as_figure(const MappedFile *file)
{
    static const char key[] = "\"figure\"";
    size_t at = 0, n = strlen(key);
    while (at < file->bytes && memchr(" \t\r\n{", file->data[at], 5)) at++;
    return file->bytes - at >= n && at > 0 && memcmp(file->data + at, key, n) == 0;
}

static int put_if_figure(TextBuffer *out, const char *path, Error *error)
{
    MappedFile file;
    Figure *figure = NULL;
    if (mapped_file_open(&file, path, error) < 0) return -1;
    int status = begins_as_figure(&file) ? figure_parse(&file, &figure, error) : 0;
    mapped_file_close(&file);
    if (figure) page_figure(out, &figure->plot);
    figure_free(figure);
    return status;
}

/* The names in a directory that end in ".json". */
typedef struct {
    char **items;
    size_t count, capacity;
} Names;

static void names_free(Names *names)
{
    for (size_t i = 0; i < names->count; i++) free(names->items[i]);
    free(names->items);
}

/* -1: no memory. */
static int names_add(Names *names, const char *name)
{
    if (names->count == names->capacity) {
        size_t capacity = names->capacity ? 2 * names->capacity : 16;
        char **larger = realloc(names->items, capacity * sizeof *larger);
        if (!larger) return -1;
        names->items = larger;
        names->capacity = capacity;
    }
    names->items[names->count] = strdup(name);
    return names->items[names->count] ? (names->count++, 0) : -1;
}

static int compare_file_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int names_list(Names *names, const char *path, Error *error)
{
    static const char suffix[] = ".json";
    DIR *directory = opendir(path);
    struct dirent *entry;
    int status = 0;
    if (!directory) return error_set(error, EXIT_USAGE, "%.700s: cannot be listed: %s", path, strerror(errno));
    while (status == 0 && (errno = 0, entry = readdir(directory))) {
        size_t length = strlen(entry->d_name), end = strlen(suffix);
        if (length > end && strcmp(entry->d_name + length - end, suffix) == 0 && names_add(names, entry->d_name) < 0)
            status = no_memory(error, path);
    }
    if (status == 0 && errno != 0)
        status = error_set(error, EXIT_FAILED, "%.700s: cannot be listed: %s", path, strerror(errno));
    closedir(directory);
    if (names->count) qsort(names->items, names->count, sizeof *names->items, compare_file_names);
    return status;
}

static int put_figures(TextBuffer *out, const char *directory, Error *error)
{
    Names names = {0};
    int status = names_list(&names, directory, error);
    for (size_t i = 0; !status && i < names.count; i++) {
        char *path = path_join(directory, names.items[i]);
        if (!path)
            status = no_memory(error, directory);
        else if (!path_is_directory(path))
            status = put_if_figure(out, path, error);
        free(path);
    }
    names_free(&names);
    return status;
}

int report_write(const char *directory, const char *title, const char *introduction, const ReportTable *tables,
                 size_t n_tables, Error *error)
{
    TextBuffer page = {0};
    if (directory_create(directory, error) < 0) return -1;
    page_begin(&page, text_or_empty(title));
    page_paragraphs(&page, text_or_empty(introduction));
    for (size_t i = 0; i < n_tables; i++) {
        text_put(&page, "<section>\n");
        page_heading(&page, 2, text_or_empty(tables[i].title));
        page_table(&page, text_or_empty(tables[i].csv));
        text_put(&page, "</section>\n");
    }
    if (put_figures(&page, directory, error) == 0) return page_write(&page, directory, error);
    free(text_take(&page));
    return -1;
}
