/* Label maps: what one call works on. */
#ifndef FATHOM_LABELS_H
#define FATHOM_LABELS_H

#include <stdint.h>

/* Probabilities on the decoder's cells, and the pixels that lie between them. All arrays are dense.
   Per pixel along an axis: the two cells around its centre, and the weight of the second. */
typedef struct {
  const float *planes; /* (channels, cell_rows, cell_columns) */
  const int64_t *top, *bottom;
  const float *down; /* (height,) of the image's rows */
  const int64_t *left, *right;
  const float *across; /* (width,) of some of its columns */
  uint8_t *labels;     /* (height, width): the label map; NULL: its runs are written */
  int64_t *starts;     /* room for (width * height,): where each run begins, as x * height + y */
  uint8_t *values;     /* the same room: the labels of the runs */
  int64_t height, width;
  int32_t channels, cell_rows, cell_columns;
} Labelling;

/* Write the label map, or the runs down its columns, of which neighbours may have the same label.
   Returns how many runs they are; -1 if there is no memory. One build of labels.c for each set of
   instructions. */
typedef int64_t Label(const Labelling *call);
Label label_base, label_v3, label_v4;

#endif
