// Lets g++ compile our CUDA kernels, so that their arithmetic is tested without a GPU. A warp is 32 fibers (ucontext)
// that run one after another; at a shuffle each leaves its value in a slot and gives way, so that when its turn comes
// again all others have left theirs. As on the GPU, a shuffle that not every lane reaches never ends (here: is noticed).
#pragma once
#define CUDA_ON_HOST
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct float2 { float x, y; };
struct uint4 { unsigned int x, y, z, w; };
struct Index { unsigned int x, y, z; };
static Index threadIdx, blockIdx, blockDim;

// ------------------------------------------------------------------------------------------------------------ numbers
static unsigned int to_bits(float x) { unsigned int bits; std::memcpy(&bits, &x, 4); return bits; }
static float from_bits(unsigned int bits) { float x; std::memcpy(&x, &bits, 4); return x; }
template <typename T> static void keep(T&) {}
template <typename T> static T __ldg(const T* at) { return *at; }
template <typename T> static void __stcg(T* at, T bits) { *at = bits; }
static float __fdividef(float a, float b) { return a / b; }

static float half_to_float(unsigned int half) {
    const unsigned int sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    const float size = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                       : exponent == 31 ? (fraction ? NAN : INFINITY)
                                        : std::ldexp(1024.0f + fraction, static_cast<int>(exponent) - 25);
    return from_bits(to_bits(size) | sign);
}
// To nearest, ties to even. From double, so that the sum of an fma is rounded once (53 bits hold what matters of it).
static unsigned int to_half(double x) {
    const unsigned int sign = std::signbit(x) ? 0x8000u : 0;
    const double size = std::fabs(x);
    if (!(size < 65520.0)) return sign | (size != size ? 0x7e00u : 0x7c00u);
    int exponent;
    std::frexp(size, &exponent);
    const int scale = exponent - 11 < -24 ? -24 : exponent - 11;  // the last bit's worth
    const unsigned int steps = static_cast<unsigned int>(std::nearbyint(std::ldexp(size, -scale)));
    return sign | (size == 0 ? 0 : steps + (static_cast<unsigned int>(scale + 24) << 10));
}
static unsigned int to_bfloat(float x) {
    const unsigned int bits = to_bits(x);
    return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
static void half2_to_float(unsigned int pair, float& low, float& high) {
    low = half_to_float(pair & 0xffffu), high = half_to_float(pair >> 16);
}
static unsigned int float_to_half2(float low, float high) { return to_half(low) | to_half(high) << 16; }
static unsigned int float_to_bfloat2(float low, float high) { return to_bfloat(low) | to_bfloat(high) << 16; }
static unsigned int half2_low(unsigned int pair) { return (pair & 0xffffu) * 0x10001u; }
static unsigned int half2_high(unsigned int pair) { return (pair >> 16) * 0x10001u; }
static unsigned int half2_fma(unsigned int a, unsigned int b, unsigned int c) {
    unsigned int sum = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const auto half = [shift](unsigned int pair) { return double(half_to_float(pair >> shift & 0xffffu)); };
        sum |= to_half(half(a) * half(b) + half(c)) << shift;
    }
    return sum;
}

// -------------------------------------------------------------------------------------------------------------- warps
namespace warp {
constexpr int SIZE = 32;
static ucontext_t home, fibers[SIZE];
static char stacks[SIZE][1 << 16];
static unsigned int slots[2][SIZE], shuffles[SIZE];  // two rounds of slots: a lane is at most one shuffle ahead
static bool done[SIZE];
static int lane;
static unsigned int first;
static std::function<void()> body;

static void enter(int next) { lane = next, threadIdx.x = first + next; }
static void give_way() {
    const int from = lane, next = (lane + 1) % SIZE;
    if (done[next]) std::fputs("a lane ended while others still shuffle\n", stderr), std::abort();
    enter(next);
    swapcontext(&fibers[from], &fibers[next]);
}
static void run_lane() {
    body();
    done[lane] = true;
    if (lane + 1 == SIZE) { setcontext(&home); }
    const int next = lane + 1;
    enter(next);
    setcontext(&fibers[next]);
}
static void run(unsigned int first_thread) {
    first = first_thread;
    for (int i = 0; i < SIZE; i++) {
        done[i] = false, shuffles[i] = 0;
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = stacks[i], fibers[i].uc_stack.ss_size = sizeof stacks[i], fibers[i].uc_link = nullptr;
        makecontext(&fibers[i], run_lane, 0);
    }
    enter(0);
    swapcontext(&home, &fibers[0]);
}
template <typename T> static T exchange(T value, int from) {
    static_assert(sizeof(T) == 4, "one register");
    const int round = shuffles[lane]++ % 2;
    std::memcpy(&slots[round][lane], &value, 4);
    give_way();
    std::memcpy(&value, &slots[round][from], 4);
    return value;
}
}  // namespace warp

template <typename T> static T __shfl_sync(unsigned int, T value, int from, int width) {
    return warp::exchange(value, warp::lane / width * width + from % width);
}
template <typename T> static T __shfl_xor_sync(unsigned int, T value, int mask, int width) {
    return warp::exchange(value, warp::lane / width * width + (warp::lane % width ^ mask));
}

static void run_grid(Index grid, unsigned int block, std::function<void()> body) {
    warp::body = std::move(body);
    blockDim = {block, 1, 1};
    for (unsigned int z = 0; z < grid.z; z++)
        for (unsigned int y = 0; y < grid.y; y++)
            for (unsigned int x = 0; x < grid.x; x++)
                for (unsigned int t = 0; t < block; t += warp::SIZE) blockIdx = {x, y, z}, warp::run(t);
}
