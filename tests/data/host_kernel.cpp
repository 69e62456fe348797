// The fused kernel as a function of a shared library: grid, block, then the kernel's own arguments.
#include "cuda_on_host.h"

#include "ms_deform_attn.cu"

extern "C" void run(unsigned int x, unsigned int y, unsigned int z, unsigned int block, const stored* value,
                    const stored* offsets, const stored* logits, const float* reference, int queries, stored* out) {
    run_grid({x, y, z}, block, [=] { ms_deform_attn(value, offsets, logits, reference, queries, out); });
}
