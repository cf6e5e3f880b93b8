/* report.h: figures, and a report that lays them out with tables: one HTML page that needs no network and no script. */
#ifndef PROMOT_REPORT_H
#define PROMOT_REPORT_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"
#include "text_buffer.h"

/* A value that is NaN or infinite is a gap in the line. spread: NULL, or the half-height of a band around y. */
typedef struct {
    const char *name;
    size_t n;
    const double *x, *y; /* [n] */
    const double *spread;
} PlotSeries;

/* points: marks joined in order (a trade-off path; its first mark is hollow) instead of a curve over x, which comes in
 * ascending order. The caption stands under the picture in a report. */
typedef struct {
    const char *title, *x_label, *y_label, *caption;
    size_t count;
    const PlotSeries *series;
    bool points;
    double y_low, y_high; /* reaches from one to the other at least, bands end there; equal: only over the data */
} Plot;

char *plot_svg(const Plot *plot); /* to be freed; NULL: no memory */

/* Several side by side, each so wide (a plot alone is 720), as a picture that stands alone: light or dark as the
 * reader's screen is, where plot_svg leaves that to the page around it. To be freed; NULL: no memory. */
char *plots_svg(const Plot *plots, size_t count, int width);

/* Writes DIRECTORY/NAME.svg, NAME.csv (series, x, y, spread) and NAME.json, which holds everything of the plot. */
int figure_write(const char *directory, const char *name, const Plot *plot, Error *error);

/* DIRECTORY/NAME.json back as a Plot, so that the curves of several runs can be laid into one picture. EXIT_USAGE when
 * it is not there, EXIT_FAILED when it is not a figure; *out is NULL then. */
typedef struct Figure Figure;
int figure_read(const char *path, Figure **out, Error *error);
const Plot *figure_plot(const Figure *figure);
void figure_free(Figure *figure); /* NULL is fine */

/* A page, put together piece by piece in a TextBuffer that starts from {0}; between the pieces a caller may put HTML of
 * its own there. page_write ends it, writes DIRECTORY/report.html and empties the buffer. Light or dark as the reader's
 * screen is. */
void page_begin(TextBuffer *page, const char *title);
void page_heading(TextBuffer *page, int level, const char *text);
void page_paragraphs(TextBuffer *page, const char *text); /* an empty line begins a new one */
void page_table(TextBuffer *page, const char *csv);
void page_figure(TextBuffer *page, const Plot *plot);
/* Side by side, one at least, together as wide as one alone; the first one's caption stands under all. */
void page_panels(TextBuffer *page, const Plot *plots, size_t count);
int page_write(TextBuffer *page, const char *directory, Error *error);

/* A table is CSV as RFC 4180 has it, or plain tab-separated values when there is a tab in its first line; its first row
 * is the head. As text for a terminal: columns of numbers stand right. To be freed; NULL: no memory. */
char *table_text(const char *csv);

typedef struct {
    const char *title, *csv;
} ReportTable;

/* Writes DIRECTORY/report.html: the title, the introduction, the tables, and all figures of DIRECTORY in name order
 * with their captions. */
int report_write(const char *directory, const char *title, const char *introduction, const ReportTable *tables,
                 size_t n_tables, Error *error);

#endif
