#ifndef FATHOM_DEFORMABLE_H
#define FATHOM_DEFORMABLE_H

#include "sampling.h"

/* Compute call->out with that many threads. Returns 0 for more than MAX_POINTS points in a query, for
   none, and for 2^31 numbers or more in the values of an image. */
int fathom_attend(const Attention *call, int threads);

#endif
