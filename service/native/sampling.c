/* Multi-scale deformable attention (arXiv 2010.04159, section 4.1) for a range of queries: softmax,
   locations and bilinear sampling in one pass, so that nothing of the size of the samples is ever
   stored. The definition is model_export/network/deformable_attention.py.

   Compiled once for each set of instructions, with NAME as the function's name. LANES numbers fill a
   register; the compiler's vector types keep the source free of intrinsics. */
#include "sampling.h"

#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))
#define PADDED (MAX_POINTS + LANES)

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

static const Floats zero = {0};

INLINE Floats load(const float *from) {
  Floats v;
  memcpy(&v, from, sizeof v);
  return v;
}
INLINE void store(void *to, Floats v) { memcpy(to, &v, sizeof v); }
INLINE Floats only(Ints mask, Floats v) { return (Floats)(mask & (Ints)v); }
INLINE Floats either(Ints mask, Floats a, Floats b) {
  return (Floats)((mask & (Ints)a) | (~mask & (Ints)b));
}
/* Not a number becomes `low`: what is sampled there then lies inside of the tensor. */
INLINE Floats at_least(Floats v, Floats low) { return either(v > low, v, low); }
INLINE Floats at_most(Floats v, Floats high) { return either(v < high, v, high); }
INLINE Ints whole(Floats v) { return __builtin_convertvector(v, Ints); }
INLINE Floats floor_of(Floats v) { /* |v| < 2^31 */
  Floats cut = __builtin_convertvector(whole(v), Floats);
  return cut - only(cut > v, zero + 1.0f);
}

/* exp(v) for v <= 0, to 2e-7: 2^n * exp(r) with |r| <= ln(2) / 2 and the Taylor series of exp. */
INLINE Floats exp_of(Floats v) {
  v = at_least(v, zero - 87.0f);
  Floats n = floor_of(v * 1.44269504f + 0.5f);
  Floats r = v - n * 0.693359375f + n * 2.12194440e-4f; /* ln(2) in two parts */
  Floats p = zero + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * (Floats)((whole(n) + 127) << 23);
}

/* What all queries have in common, for each of a query's points, head after head. */
typedef struct {
  float wide[PADDED], high[PADDED]; /* of the point's level */
  int32_t start[PADDED];            /* where the level begins for the head, in numbers */
} Places;

/* The four corners of each point: shares of the softmax, not yet divided by its sum, and where their
   channels begin. */
typedef struct {
  float exponential[PADDED];
  float share[4][PADDED];
  int32_t from[4][PADDED];
} Corners;

INLINE void place(Places *all, const Attention *call, int channels) {
  memset(all, 0, sizeof *all);
  for (int head = 0, k = 0; head < call->heads; head++) {
    int start = 0;
    for (int level = 0; level < call->levels; level++) {
      int high = call->sizes[2 * level], wide = call->sizes[2 * level + 1];
      for (int point = 0; point < call->points; point++, k++) {
        all->wide[k] = wide;
        all->high[k] = high;
        all->start[k] = start * channels + head * call->width;
      }
      start += high * wide;
    }
  }
}

/* The corners of LANES points from k on. */
INLINE void corners_of(Corners *all, const Places *places, int k, const float (*offsets)[LANES],
                       const float *reference, int channels) {
  Floats weight = exp_of(load(all->exponential + k));
  Floats wide = load(places->wide + k), high = load(places->high + k);
  Floats right_most = wide - 1.0f, lowest = high - 1.0f;
  Floats x = reference[0] * wide + load(offsets[0]) - 0.5f;
  Floats y = reference[1] * high + load(offsets[1]) - 0.5f;
  x = at_most(at_least(x, zero - 2.0f), wide + 1.0f);
  y = at_most(at_least(y, zero - 2.0f), high + 1.0f);
  Floats x0 = floor_of(x), y0 = floor_of(y), x1 = x0 + 1.0f, y1 = y0 + 1.0f;
  Floats dx = x - x0, dy = y - y0;
  /* Outside of the map everything is zero. */
  Floats left = only((x0 >= zero) & (x0 <= right_most), 1.0f - dx);
  Floats right = only((x1 >= zero) & (x1 <= right_most), dx);
  Floats top = only((y0 >= zero) & (y0 <= lowest), weight - weight * dy);
  Floats bottom = only((y1 >= zero) & (y1 <= lowest), weight * dy);
  Ints start, x_left = whole(at_most(at_least(x0, zero), right_most)) * channels;
  Ints x_right = whole(at_most(at_least(x1, zero), right_most)) * channels;
  memcpy(&start, places->start + k, sizeof start);
  Ints above = start + whole(at_most(at_least(y0, zero), lowest)) * whole(wide) * channels;
  Ints below = start + whole(at_most(at_least(y1, zero), lowest)) * whole(wide) * channels;
  store(all->exponential + k, weight);
  store(all->share[0] + k, left * top);
  store(all->share[1] + k, right * top);
  store(all->share[2] + k, left * bottom);
  store(all->share[3] + k, right * bottom);
  store(all->from[0] + k, (Floats)(above + x_left));
  store(all->from[1] + k, (Floats)(above + x_right));
  store(all->from[2] + k, (Floats)(below + x_left));
  store(all->from[3] + k, (Floats)(below + x_right));
}

/* One head's channels: the sum over its points first..end, divided by the softmax's sum. */
INLINE void gather(const Corners *all, int first, int end, const float *value, int width,
                   float *out) {
  float sum = 0;
  for (int k = first; k < end; k++) sum += all->exponential[k];
  const float scale = 1 / sum;
  int done = 0;
  for (; done + LANES <= width; done += LANES) {
    Floats upper = zero, lower = zero;
    for (int k = first; k < end; k++) {
      upper += all->share[0][k] * load(value + all->from[0][k] + done);
      lower += all->share[2][k] * load(value + all->from[2][k] + done);
      upper += all->share[1][k] * load(value + all->from[1][k] + done);
      lower += all->share[3][k] * load(value + all->from[3][k] + done);
    }
    store(out + done, (upper + lower) * scale);
  }
  for (; done < width; done++) {
    float total = 0;
    for (int k = first; k < end; k++)
      for (int corner = 0; corner < 4; corner++)
        total += all->share[corner][k] * value[all->from[corner][k] + done];
    out[done] = total * scale;
  }
}

INLINE void run(const Attention *call, int64_t begin, int64_t end, const int width,
                const int each) {
  const int count = call->heads * each, channels = call->heads * width;
  Places places;
  Corners corners;
  place(&places, call, channels);
  memset(corners.exponential, 0, sizeof corners.exponential);
  for (int64_t row = begin; row < end; row++) {
    const float *offsets = call->offsets + row * count * 2, *logits = call->logits + row * count;
    const float *value = call->value + row / call->queries * call->tokens * channels;
    const float *reference =
        call->reference + 2 * (call->per_image ? row : row % call->queries);
    for (int first = 0; first < count; first += each) {
      float most = logits[first];
      for (int k = first + 1; k < first + each; k++) most = logits[k] > most ? logits[k] : most;
      for (int k = first; k < first + each; k++) corners.exponential[k] = logits[k] - most;
    }
    for (int k = 0; k < count; k += LANES) {
      float split[2][LANES] = {{0}};
      if (k + LANES <= count)
        for (int i = 0; i < LANES; i++)
          for (int axis = 0; axis < 2; axis++) split[axis][i] = offsets[2 * (k + i) + axis];
      else
        for (int i = 0; i < count - k; i++)
          for (int axis = 0; axis < 2; axis++) split[axis][i] = offsets[2 * (k + i) + axis];
      corners_of(&corners, &places, k, (const float(*)[LANES])split, reference, channels);
    }
    for (int head = 0; head < call->heads; head++)
      gather(&corners, head * each, (head + 1) * each, value, width,
             call->out + row * channels + head * width);
  }
}

/* Known sizes let the compiler unroll: 4 points on 1 to 3 levels, 16 channels a head, are the shipped
   networks', 32 Mask2Former's. */
void NAME(const Attention *call, int64_t begin, int64_t end) {
  const int width = call->width, each = call->levels * call->points;
  if (width == 16 && each == 12)
    run(call, begin, end, 16, 12);
  else if (width == 16)
    run(call, begin, end, 16, each);
  else if (width == 32)
    run(call, begin, end, 32, each);
  else
    run(call, begin, end, width, each);
}
