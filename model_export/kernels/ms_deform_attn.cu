// Multi-scale deformable attention, forward (arXiv 2010.04159, section 4.1), fused: softmax over the raw logits and the
// step from raw offsets to places happen in registers, in float whatever the storage is. Meaning of every argument:
// model_export/network/deformable_attention.py. Defines, grid and block: launch.py.
//
// LANES neighbouring lanes of a warp share one (query, head): each carries WIDTH / LANES of its channels in 16-byte
// pieces. A sample's place and weights are computed by one lane of the group and handed to the others by shuffle.
//
// There is no bounds test at the gather. The 2 x 2 patch of a sample is moved until it lies inside of the level, and
// each of its pixels weighs max(0, 1 - distance) per axis: that is bilinear interpolation with zeros outside, and gives
// weight 0 to a patch that had to be moved away from its sample. So all loads are unconditional, at constant distances
// from one address, and no warp diverges.
#include "storage.cuh"

constexpr int SAMPLES = LEVELS * POINTS;
constexpr int LANES = WIDTH / (VECTOR * VECTORS);
constexpr int SLOTS = (SAMPLES + LANES - 1) / LANES;  // samples that one lane prepares
constexpr int CARRIED = VECTOR * VECTORS;             // channels of one lane
constexpr int STRIDE = HEADS * WIDTH;                 // elements from one token to the next
constexpr int TILE = TILE_W * TILE_H;                 // queries of a block
constexpr unsigned int WARP = 0xffffffffu;

static_assert(LANES * CARRIED == WIDTH && (LANES & (LANES - 1)) == 0 && LANES <= 32, "lanes divide channels and warp");
static_assert(TILE * HEADS_PER_BLOCK * LANES == BLOCK && BLOCK % 32 == 0, "the block is whole warps");
static_assert(HEADS % HEADS_PER_BLOCK == 0, "blocks share the heads evenly");

// Sizes of the levels, 16 bits each, the first level lowest. No table in memory, whether the level is a constant or not.
__device__ constexpr int height(int level) { return HEIGHT_BITS >> (16 * level) & 0xffff; }
__device__ constexpr int width(int level) { return WIDTH_BITS >> (16 * level) & 0xffff; }
__device__ constexpr int first_token(int level) {
    int sum = 0;
#pragma unroll
    for (int i = 0; i < LEVELS; i++) sum += i < level ? height(i) * width(i) : 0;
    return sum;
}

// The query at a place of a tile; -1 where the tile sticks out.
__device__ inline int query_at(int tile, int place, int queries) {
#ifdef DENSE  // the queries are the tokens: tiles are TILE_W x TILE_H on a level, whose samples overlap in the cache
    int query = -1;
#pragma unroll
    for (int level = 0; level < LEVELS; level++) {
        const int across = (width(level) + TILE_W - 1) / TILE_W;
        const int tiles = across * ((height(level) + TILE_H - 1) / TILE_H);
        if (tile >= 0 && tile < tiles) {
            const int y = tile / across * TILE_H + place / TILE_W;
            const int x = tile % across * TILE_W + place % TILE_W;
            if (y < height(level) && x < width(level)) query = first_token(level) + y * width(level) + x;
        }
        tile -= tiles;
    }
    return query;
#else  // any queries, in the caller's order
    const int query = tile * TILE + place;
    return query < queries ? query : -1;
#endif
}

// What the lanes of a group need to know of one sample.
struct Sample {
    int token;  // upper left pixel of the patch, counted through all levels
#ifdef PACKED_BLEND
    unsigned int above, below;  // the bilinear weights, left in the low half
    float weight;               // softmax
#else
    float weight[4];  // bilinear x softmax: upper left, upper right, lower left, lower right
#endif
};

__device__ inline Sample locate(int level, float x, float y, float attention) {
    const float left = fminf(fmaxf(floorf(x), 0.0f), static_cast<float>(width(level) > 1 ? width(level) - 2 : 0));
    const float top = fminf(fmaxf(floorf(y), 0.0f), static_cast<float>(height(level) > 1 ? height(level) - 2 : 0));
    const float x0 = fmaxf(0.0f, 1.0f - fabsf(x - left)), y0 = fmaxf(0.0f, 1.0f - fabsf(y - top));
    const float x1 = width(level) > 1 ? fmaxf(0.0f, 1.0f - fabsf(x - left - 1.0f)) : 0.0f;
    const float y1 = height(level) > 1 ? fmaxf(0.0f, 1.0f - fabsf(y - top - 1.0f)) : 0.0f;
    Sample sample;
    sample.token = first_token(level) + static_cast<int>(top) * width(level) + static_cast<int>(left);
#ifdef PACKED_BLEND
    sample.above = float_to_half2(x0 * y0, x1 * y0);
    sample.below = float_to_half2(x0 * y1, x1 * y1);
    sample.weight = attention;
#else
    sample.weight[0] = x0 * (y0 * attention);
    sample.weight[1] = x1 * (y0 * attention);
    sample.weight[2] = x0 * (y1 * attention);
    sample.weight[3] = x1 * (y1 * attention);
#endif
    return sample;
}

__device__ inline Sample from_lane(const Sample& mine, int owner) {
    Sample sample;
    sample.token = __shfl_sync(WARP, mine.token, owner, LANES);
#ifdef PACKED_BLEND
    sample.above = __shfl_sync(WARP, mine.above, owner, LANES);
    sample.below = __shfl_sync(WARP, mine.below, owner, LANES);
    sample.weight = __shfl_sync(WARP, mine.weight, owner, LANES);
#else
#pragma unroll
    for (int i = 0; i < 4; i++) sample.weight[i] = __shfl_sync(WARP, mine.weight[i], owner, LANES);
#endif
    return sample;
}

// sum += the sample's channels, read from a patch whose pixels lie `right` and `down` elements apart.
__device__ inline void gather(float* sum, const stored* patch, int right, int down, const Sample& sample) {
    const uint4 pixels[4] = {load_vector(patch), load_vector(patch + right), load_vector(patch + down),
                             load_vector(patch + down + right)};
#ifdef PACKED_BLEND  // float16 only: the mean of four pixels cannot overflow and costs one rounding per pixel
    const unsigned int weights[4] = {half2_low(sample.above), half2_high(sample.above), half2_low(sample.below),
                                     half2_high(sample.below)};
    unsigned int words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[0] = half2_fma(pixels[i].x, weights[i], words[0]);
        words[1] = half2_fma(pixels[i].y, weights[i], words[1]);
        words[2] = half2_fma(pixels[i].z, weights[i], words[2]);
        words[3] = half2_fma(pixels[i].w, weights[i], words[3]);
    }
#pragma unroll
    for (int w = 0; w < 4; w++) {
        float channels[2];
        widen(words[w], channels);
        sum[2 * w] += channels[0] * sample.weight;
        sum[2 * w + 1] += channels[1] * sample.weight;
    }
#else
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float channels[VECTOR];
        widen(pixels[i].x, channels);
        widen(pixels[i].y, channels + IN_WORD);
        widen(pixels[i].z, channels + 2 * IN_WORD);
        widen(pixels[i].w, channels + 3 * IN_WORD);
#pragma unroll
        for (int c = 0; c < VECTOR; c++) sum[c] += channels[c] * sample.weight[i];
    }
#endif
}

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
ms_deform_attn(const stored* __restrict__ value, const stored* __restrict__ offsets, const stored* __restrict__ logits,
               const float* __restrict__ reference, int queries, stored* __restrict__ out) {
    const int lane = threadIdx.x % LANES, pair = threadIdx.x / LANES;
    const int head = blockIdx.y * HEADS_PER_BLOCK + pair % HEADS_PER_BLOCK;
    const int wanted = query_at(blockIdx.x, pair / HEADS_PER_BLOCK, queries);
    const int query = wanted < 0 ? 0 : wanted;  // a shuffle needs every lane: those beyond the edge work, but do not store
    const long long image = blockIdx.z;         // 64 bits: a batch of large maps has more than 2^31 elements
    const long long row = (image * queries + query) * HEADS + head;
#ifdef REFERENCE_PER_IMAGE
    const float2 centre = reinterpret_cast<const float2*>(reference)[image * queries + query];
#else
    const float2 centre = reinterpret_cast<const float2*>(reference)[query];
#endif

    // Sample i belongs to lane i % LANES of the group. A last round that is not full repeats its last sample, with
    // weight 0.
    float score[SLOTS], top = -3.0e38f, total = 0.0f;
#pragma unroll
    for (int slot = 0; slot < SLOTS; slot++) {
        const int i = slot * LANES + lane;
        score[slot] = i < SAMPLES ? load(logits + row * SAMPLES + i) : -3.0e38f;
        top = fmaxf(top, score[slot]);
    }
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(WARP, top, step, LANES));
#pragma unroll
    for (int slot = 0; slot < SLOTS; slot++) {
        score[slot] = expf(score[slot] - top);
        total += score[slot];
    }
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) total += __shfl_xor_sync(WARP, total, step, LANES);
    const float share = __fdividef(1.0f, total);  // 1 <= total <= SAMPLES: the short division is as good

    Sample mine[SLOTS];
#pragma unroll
    for (int slot = 0; slot < SLOTS; slot++) {
        const int i = slot * LANES + lane < SAMPLES ? slot * LANES + lane : SAMPLES - 1;
        const int level = i / POINTS;
        const float2 offset = load_pair(offsets + (row * SAMPLES + i) * 2);
        mine[slot] = locate(level, centre.x * width(level) + offset.x - 0.5f,
                            centre.y * height(level) + offset.y - 0.5f, score[slot] * share);
    }

    const stored* tokens =
        value + image * (static_cast<long long>(first_token(LEVELS)) * STRIDE) + head * WIDTH + lane * VECTOR;
    keep(tokens);
    float sum[CARRIED] = {};
#pragma unroll
    for (int i = 0; i < SAMPLES; i++) {
        const Sample sample = from_lane(mine[i / LANES], i % LANES);
        const int level = i / POINTS;
        const int right = width(level) > 1 ? STRIDE : 0, down = height(level) > 1 ? width(level) * STRIDE : 0;
        const stored* patch = tokens + static_cast<long long>(sample.token) * STRIDE;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) gather(sum + v * VECTOR, patch + v * LANES * VECTOR, right, down, sample);
    }

    if (wanted < 0) return;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const float* channels = sum + v * VECTOR;
        store_vector(out + row * WIDTH + (v * LANES + lane) * VECTOR,
                     uint4{narrow(channels), narrow(channels + IN_WORD), narrow(channels + 2 * IN_WORD),
                           narrow(channels + 3 * IN_WORD)});
    }
}
