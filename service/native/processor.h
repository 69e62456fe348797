/* What the processor can run, and what the library was built from. */
#ifndef FATHOM_PROCESSOR_H
#define FATHOM_PROCESSOR_H

/* Which build of the sources that have several fits: 0 (base), 1 (v3) or 2 (v4). */
int processor_level(void);

/* The same for people: "baseline", "AVX2" or "AVX-512". */
const char *fathom_instructions(void);

/* Whether the processor multiplies in bfloat16 (AVX512_BF16, which those with AMX have, too). */
int fathom_bfloat16(void);

/* The sha256 of the sources that this was built from, in hex. */
const char *fathom_sources(void);

#endif
