// What the fused kernel is measured against: one thread per channel, as the first CUDA kernels for deformable attention
// were built. Locations (0..1) and softmax weights come from tensors that other operators wrote, every thread works out
// every place again, and all loads are single elements. Level sizes are arguments, not constants.
#include "storage.cuh"

// value (B, S, M, D); sizes (L, 2) as (h, w); locations (B, Q, M, L, P, 2) as (x, y); weights (B, Q, M, L, P);
// out (B, Q, M, D). As many threads as `out` has elements.
extern "C" __global__ void
ms_deform_attn_baseline(const stored* value, const int* sizes, const stored* locations, const stored* weights,
                        int batch, int tokens, int queries, int heads, int channels, int levels, int points,
                        stored* out) {
    const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread >= static_cast<long long>(batch) * queries * heads * channels) return;
    const int channel = thread % channels, head = thread / channels % heads;
    const long long row = thread / channels;  // of (B, Q, M)
    const stored* plane = value + row / heads / queries * tokens * heads * channels + head * channels + channel;
    const int stride = heads * channels;
    float sum = 0.0f;
    for (int level = 0; level < levels; level++) {
        const int height = sizes[2 * level], width = sizes[2 * level + 1];
        for (int point = 0; point < points; point++) {
            const long long sample = (row * levels + level) * points + point;
            const float x = load(locations + 2 * sample) * width - 0.5f;
            const float y = load(locations + 2 * sample + 1) * height - 0.5f;
            if (!(x > -1.0f && y > -1.0f && x < width && y < height)) continue;
            const int left = static_cast<int>(floorf(x)), top = static_cast<int>(floorf(y));
            const float right = x - left, down = y - top;
            float mean = 0.0f;
            if (top >= 0 && left >= 0) mean += (1 - down) * (1 - right) * load(plane + (top * width + left) * stride);
            if (top >= 0 && left + 1 < width)
                mean += (1 - down) * right * load(plane + (top * width + left + 1) * stride);
            if (top + 1 < height && left >= 0)
                mean += down * (1 - right) * load(plane + ((top + 1) * width + left) * stride);
            if (top + 1 < height && left + 1 < width)
                mean += down * right * load(plane + ((top + 1) * width + left + 1) * stride);
            sum += load(weights + sample) * mean;
        }
        plane += static_cast<long long>(height) * width * stride;
    }
    store(out + thread, sum);
}
