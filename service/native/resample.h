/* Scaled images: what one call works on. */
#ifndef FATHOM_RESAMPLE_H
#define FATHOM_RESAMPLE_H

#include <stdint.h>

/* How each pixel along an axis is made: of `count` pixels from `first` on, times weights. */
typedef struct {
  const int32_t *first, *count; /* (size,) */
  const int32_t *weights;       /* (size, taps), in units of 2^-22 */
  int32_t size, taps;
} Filter;

typedef struct {
  const uint8_t *pixels; /* (height, width, 3), dense */
  uint8_t *out;          /* (rows.size, columns.size, 3), each row out_row bytes from the last */
  int64_t out_row;
  Filter columns, rows;
  int32_t height, width;
  int32_t down_first; /* 0: across first */
} Resampling;

/* Returns 0 if there is no memory. One build of resample.c for each set of instructions. */
typedef int Resample(const Resampling *call);
Resample resample_base, resample_v3, resample_v4;

#endif
