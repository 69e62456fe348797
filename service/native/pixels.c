/* What works on pixels, for any caller that has a function call: which build fits the processor. */
#include "labels.h"
#include "processor.h"
#include "scale.h"

#if defined(__x86_64__)
#define FITTING(name) ((const typeof(&name##_base)[]){name##_base, name##_v3, name##_v4})[processor_level()]
#else
#define FITTING(name) name##_base
#endif

int64_t fathom_label(const Labelling *call) { return FITTING(label)(call); }
int64_t fathom_scale(const Scaling *call) { return FITTING(scale)(call); }
