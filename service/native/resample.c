/* RGB images scaled as Pillow's `resize` does it, to the last bit: in integers, across and down, or
   down and across, and each time rounded to 8 bits.

   Compiled once for each set of instructions, with NAME as the function's name. The compiler's vector
   types keep the source free of intrinsics. */
#include "resample.h"

#include <stdlib.h>
#include <string.h>

#define BITS 22
#define HALF (1 << (BITS - 1))

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef int32_t Pixel __attribute__((vector_size(16))); /* red, green, blue, and nobody's */

/* Four bytes, three of which are a pixel. Shuffles are one instruction, unlike what compilers make of
   __builtin_convertvector. */
static inline Pixel load(const uint8_t *from) {
  const Bytes apart = {0, 4, 4, 4, 1, 4, 4, 4, 2, 4, 4, 4, 3, 4, 4, 4};
  int32_t four;
  memcpy(&four, from, 4);
  return (Pixel)__builtin_shuffle((Bytes)(Pixel){four}, apart);
}

static inline void store(uint8_t *to, Pixel sum, size_t bytes) {
  const Bytes together = {0, 4, 8, 12};
  sum >>= BITS;
  const Pixel over = sum > 255;
  sum = (over & 255) | (~over & sum);
  const int32_t four = ((Pixel)__builtin_shuffle((Bytes)sum, together))[0];
  memcpy(to, &four, bytes);
}

/* Weights are at least 0 and add up to 1 but for rounding, so that only 256 has to be cut off. */
static inline int32_t byte(int32_t sum) {
  sum >>= BITS;
  return sum > 255 ? 255 : sum;
}

static inline Pixel weighted(const Filter *columns, int32_t x, const uint8_t *row) {
  const int32_t *weights = columns->weights + (int64_t)x * columns->taps;
  const uint8_t *from = row + 3 * (int64_t)columns->first[x];
  Pixel sum = {HALF, HALF, HALF};
  for (int32_t k = 0; k < columns->count[x]; k++) sum += load(from + 3 * k) * weights[k];
  return sum;
}

/* `height` rows of `width` pixels -> as many rows of columns->size. last: room for a row and a byte. */
static void across(const Filter *columns, const uint8_t *from, int64_t from_row, int32_t width,
                   int32_t height, uint8_t *last, uint8_t *out, int64_t out_row) {
  /* Four bytes are read of every pixel: behind the last row there may be none. */
  memcpy(last, from + (height - 1) * from_row, 3 * (size_t)width);
  last[3 * width] = 0;
  for (int32_t y = 0; y < height; y++, out += out_row) {
    const uint8_t *row = y + 1 < height ? from + y * from_row : last;
    const int32_t end = columns->size - 1;
    /* The fourth byte is the next pixel's, which is written later. */
    for (int32_t x = 0; x < end; x++) store(out + 3 * x, weighted(columns, x, row), 4);
    store(out + 3 * end, weighted(columns, end, row), 3);
  }
}

/* Rows of `values` bytes -> rows->size rows. sum: room for `values`. */
static void down(const Filter *rows, const uint8_t *from, int64_t from_row, int32_t values,
                 int32_t *restrict sum, uint8_t *out, int64_t out_row) {
  for (int32_t y = 0; y < rows->size; y++) {
    const int32_t *weights = rows->weights + (int64_t)y * rows->taps;
    uint8_t *restrict to = out + y * out_row;
    for (int32_t i = 0; i < values; i++) sum[i] = HALF;
    for (int32_t k = 0; k < rows->count[y]; k++) {
      const uint8_t *restrict row = from + (rows->first[y] + k) * from_row;
      const int32_t weight = weights[k];
      for (int32_t i = 0; i < values; i++) sum[i] += row[i] * weight;
    }
    for (int32_t i = 0; i < values; i++) to[i] = byte(sum[i]);
  }
}

int NAME(const Resampling *call) {
  const Filter *columns = &call->columns, *rows = &call->rows;
  const int64_t wide = 3 * (int64_t)call->width, narrow = 3 * (int64_t)columns->size;
  const int64_t most = wide > narrow ? wide : narrow;
  const int64_t between = call->down_first ? rows->size * wide : call->height * narrow;
  uint8_t *scaled = malloc(between), *last = malloc(wide + 1);
  int32_t *sum = malloc(sizeof(int32_t) * most);
  const int made = scaled && last && sum;
  if (made && call->down_first) {
    down(rows, call->pixels, wide, wide, sum, scaled, wide);
    across(columns, scaled, wide, call->width, rows->size, last, call->out, call->out_row);
  } else if (made) {
    across(columns, call->pixels, wide, call->width, call->height, last, scaled, narrow);
    down(rows, scaled, narrow, narrow, sum, call->out, call->out_row);
  }
  free(scaled);
  free(last);
  free(sum);
  return made;
}
