// The baseline kernel as a function of a shared library; blocks of 32 threads.
#include "cuda_on_host.h"

#include "ms_deform_attn_baseline.cu"

extern "C" void run(const stored* value, const int* sizes, const stored* locations, const stored* weights, int batch,
                    int tokens, int queries, int heads, int channels, int levels, int points, stored* out) {
    const unsigned int blocks = (batch * queries * heads * channels + 31) / 32;
    run_grid({blocks, 1, 1}, 32, [=] {
        ms_deform_attn_baseline(value, sizes, locations, weights, batch, tokens, queries, heads, channels, levels,
                                points, out);
    });
}
