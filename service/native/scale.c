/* An image of three 8-bit channels at another size, as Pillow's `resize` defines it, to the last bit:
   first across, then down, with weights of 22 bits and 8 bits in between.

   Compiled once for each set of instructions, with NAME as the function's name. The loops over a row
   have no branches, so that compilers make vector instructions of them. */
#include "scale.h"

#include <stdlib.h>

#define HALF (1 << (FRACTION - 1))

/* row: (width, 3) -> scaled: (across->size, 3). */
static void scale_row(const uint8_t *restrict row, const Taps *across, uint8_t *restrict scaled) {
  for (int64_t x = 0; x < across->size; x++) {
    const uint8_t *pixel = row + 3 * (int64_t)across->first[x];
    const int32_t *weight = across->weights + x * across->most;
    int32_t red = HALF, green = HALF, blue = HALF;
    for (int32_t i = 0; i < across->number[x]; i++, pixel += 3) {
      red += pixel[0] * weight[i];
      green += pixel[1] * weight[i];
      blue += pixel[2] * weight[i];
    }
    scaled[3 * x] = red >> FRACTION;
    scaled[3 * x + 1] = green >> FRACTION;
    scaled[3 * x + 2] = blue >> FRACTION;
  }
}

/* The same for two pixels for each new one, as where an image is enlarged: no inner loop. */
static void enlarge_row(const uint8_t *restrict row, const Taps *across, uint8_t *restrict scaled) {
  for (int64_t x = 0; x < across->size; x++) {
    const uint8_t *pixel = row + 3 * (int64_t)across->first[x];
    const int32_t *weight = across->weights + 2 * x;
    const int64_t next = across->number[x] > 1 ? 3 : 0;
    for (int channel = 0; channel < 3; channel++)
      scaled[3 * x + channel] =
          (HALF + pixel[channel] * weight[0] + pixel[next + channel] * weight[1]) >> FRACTION;
  }
}

static void add_row(const uint8_t *restrict row, int32_t weight, int32_t *restrict sum, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    sum[i] += row[i] * weight;
}

static void mix_rows(const uint8_t *restrict upper, const uint8_t *restrict lower, int32_t of_upper,
                     int32_t of_lower, uint8_t *restrict mixed, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    mixed[i] = (HALF + upper[i] * of_upper + lower[i] * of_lower) >> FRACTION;
}

int64_t NAME(const Scaling *call) {
  const Taps *across = &call->across, *down = &call->down;
  const int64_t length = 3 * across->size;
  uint8_t *rows = malloc(call->height * length); /* scaled across */
  int32_t *sum = malloc(sizeof(int32_t) * length);
  const int failed = !rows || !sum;
  for (int64_t y = 0; !failed && y < call->height; y++) {
    const uint8_t *row = call->source + 3 * call->width * y;
    (across->most == 2 ? enlarge_row : scale_row)(row, across, rows + length * y);
  }
  for (int64_t y = 0; !failed && y < down->size; y++) {
    const uint8_t *row = rows + length * down->first[y];
    const int32_t *weight = down->weights + y * down->most;
    uint8_t *scaled = call->target + call->stride * y;
    if (down->most == 2) {
      mix_rows(row, down->number[y] > 1 ? row + length : row, weight[0], weight[1], scaled, length);
      continue;
    }
    for (int64_t i = 0; i < length; i++)
      sum[i] = HALF;
    for (int32_t i = 0; i < down->number[y]; i++)
      add_row(row + length * i, weight[i], sum, length);
    for (int64_t i = 0; i < length; i++)
      scaled[i] = sum[i] >> FRACTION;
  }
  free(rows);
  free(sum);
  return failed ? -1 : 0;
}
