/* Deformable attention on the CPU: what one call works on. */
#ifndef FATHOM_SAMPLING_H
#define FATHOM_SAMPLING_H

#include <stdint.h>

#define MAX_POINTS 1024 /* heads * levels * points of a query */

/* All tensors are dense, in row-major order. B images, S tokens, Q queries, M heads of D channels,
   L levels, P points. */
typedef struct {
  const float *value;     /* (B, S, M, D) */
  const float *offsets;   /* (B, Q, M, L, P, 2) in pixels of each level, (x, y) */
  const float *logits;    /* (B, Q, M, L, P) */
  const float *reference; /* (Q, 2), or (B, Q, 2) if per_image, 0..1, (x, y) */
  float *out;             /* (B, Q, M * D) */
  const int32_t *sizes;   /* (L, 2): height and width of each level */
  int64_t batch, tokens, queries;
  int32_t heads, width, levels, points, per_image;
} Attention;

/* Compute the rows begin..end of the B * Q queries. One build of sampling.c for each set of
   instructions. */
typedef void Sample(const Attention *call, int64_t begin, int64_t end);
Sample sample_base, sample_v3, sample_v4;

#endif
