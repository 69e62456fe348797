/* Pixels of an image at another size: what one call works on. */
#ifndef FATHOM_SCALE_H
#define FATHOM_SCALE_H

#include <stdint.h>

#define FRACTION 22 /* bits of a weight that stand for 1; with eight of a pixel and their sum, 31 */

/* Which pixels each new one is made of, along an axis of `size` new ones. All arrays are dense. */
typedef struct {
  const int32_t *first, *number; /* (size,) */
  const int32_t *weights;       /* (size, most): those of a pixel sum to 1 << FRACTION, about */
  int64_t size, most;
} Taps;

typedef struct {
  const uint8_t *source; /* (height, width, 3) */
  uint8_t *target;       /* (down.size, stride) bytes, of which across.size * 3 are written */
  int64_t height, width, stride;
  Taps down, across;
} Scaling;

/* Write the target. Returns 0; -1 if there is no memory. One build of scale.c for each set of
   instructions. */
typedef int64_t Scale(const Scaling *call);
Scale scale_base, scale_v3, scale_v4;

#endif
