#include "processor.h"

int processor_level(void) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

const char *fathom_instructions(void) {
  const char *const names[] = {"baseline", "AVX2", "AVX-512"};
  return names[processor_level()];
}

int fathom_bfloat16(void) {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return 0;
#endif
}

const char *fathom_sources(void) { return FATHOM_SOURCES; }
