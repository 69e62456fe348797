// One element as it lies in memory (float32; -DFLOAT16 or -DBFLOAT16), and how it becomes the float that we count with.
// The 16-bit types are plain integers here and the conversions are PTX, so that no CUDA header is needed and NVRTC
// alone can compile the kernels. Compiled for the host (CUDA_ON_HOST), the primitives come from the test's shim.
#pragma once

#if defined(FLOAT16) || defined(BFLOAT16)
typedef unsigned short stored;
#else
typedef float stored;
#endif

constexpr int VECTOR = 16 / sizeof(stored);  // elements of one 16-byte access

#ifndef CUDA_ON_HOST
__device__ inline float from_bits(unsigned int bits) { return __uint_as_float(bits); }
__device__ inline unsigned int to_bits(float x) { return __float_as_uint(x); }

__device__ inline void half2_to_float(unsigned int pair, float& low, float& high) {
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(low), "=f"(high) : "r"(pair));
}
__device__ inline unsigned int float_to_half2(float low, float high) {
    unsigned int pair;
    asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(pair) : "f"(low), "f"(high));
    return pair;
}
__device__ inline unsigned int float_to_bfloat2(float low, float high) {
    unsigned int pair;
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(pair) : "f"(low), "f"(high));
    return pair;
}
// a * b + c in both halves of a register, rounded once
__device__ inline unsigned int half2_fma(unsigned int a, unsigned int b, unsigned int c) {
    unsigned int sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}
// The compiler shall not know where an address came from: it would add it up anew for every sample.
__device__ inline void keep(const stored*& address) { asm("" : "+l"(address)); }
__device__ inline unsigned int half2_low(unsigned int pair) { return __byte_perm(pair, 0, 0x1010); }
__device__ inline unsigned int half2_high(unsigned int pair) { return __byte_perm(pair, 0, 0x3232); }
#endif

// The elements of one 32-bit word: one float, or two 16-bit numbers with the first in the low half.
constexpr int IN_WORD = 4 / sizeof(stored);

__device__ inline void widen(unsigned int word, float* to) {
#if defined(FLOAT16)
    half2_to_float(word, to[0], to[1]);
#elif defined(BFLOAT16)
    to[0] = from_bits(word << 16);  // bfloat16 is the upper half of a float
    to[1] = from_bits(word & 0xffff0000u);
#else
    to[0] = from_bits(word);
#endif
}

__device__ inline unsigned int narrow(const float* from) {
#if defined(FLOAT16)
    return float_to_half2(from[0], from[1]);
#elif defined(BFLOAT16)
    return float_to_bfloat2(from[0], from[1]);
#else
    return to_bits(from[0]);
#endif
}

__device__ inline float load(const stored* at) {
#if defined(FLOAT16) || defined(BFLOAT16)
    float pair[2];
    widen(*at, pair);
    return pair[0];
#else
    return *at;
#endif
}

// 16 bytes at once. Intrinsics, because a plain assignment of a uint4 may become four stores.
__device__ inline uint4 load_vector(const stored* at) { return __ldg(reinterpret_cast<const uint4*>(at)); }
__device__ inline void store_vector(stored* at, uint4 bits) { __stcg(reinterpret_cast<uint4*>(at), bits); }

// Two neighbours, the first at an even index.
__device__ inline float2 load_pair(const stored* at) {
#if defined(FLOAT16) || defined(BFLOAT16)
    float pair[2];
    widen(*reinterpret_cast<const unsigned int*>(at), pair);
    return float2{pair[0], pair[1]};
#else
    return *reinterpret_cast<const float2*>(at);
#endif
}

__device__ inline void store(stored* at, float x) {
#if defined(FLOAT16) || defined(BFLOAT16)
    const float pair[2] = {x, 0.0f};
    *at = static_cast<stored>(narrow(pair) & 0xffffu);
#else
    *at = x;
#endif
}
