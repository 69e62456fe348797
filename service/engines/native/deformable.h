#ifndef FATHOM_DEFORMABLE_H
#define FATHOM_DEFORMABLE_H

#include "sampling.h"

/* Compute call->out with that many threads. Returns 0 for more than MAX_POINTS points in a query, for
   none, and for 2^31 numbers or more in the values of an image. */
int fathom_attend(const Attention *call, int threads);

/* What the processor runs: "AVX-512", "AVX2" or "baseline". */
const char *fathom_instructions(void);

/* Whether the processor multiplies in bfloat16 (AVX512_BF16, which those with AMX have, too). */
int fathom_bfloat16(void);

/* The sha256 of the sources that this was built from, in hex. */
const char *fathom_sources(void);

#endif
