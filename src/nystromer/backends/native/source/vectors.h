// One vector register: loads, stores, powers of two, sums. Everything else is written in terms of it.
//
// A register holds LANES floats. A micro-product (products.h) keeps ROWS x VECTORS sums in registers:
// 24 of the 32 that AVX-512 and arm64 have, 12 of the 16 of the others.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, VECTORS = 4;
#elif defined(__AVX2__)
constexpr int LANES = 8, VECTORS = 2;
#elif defined(__aarch64__)
constexpr int LANES = 4, VECTORS = 4;
#else
constexpr int LANES = 4, VECTORS = 2;
#endif
constexpr int ROWS = 6;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t up_to(int64_t multiple, int64_t x) { return (x + multiple - 1) / multiple * multiple; }

template <int N>
struct Of {
    typedef float Floats __attribute__((vector_size(N * sizeof(float))));
    typedef uint32_t Words __attribute__((vector_size(N * sizeof(uint32_t))));
    typedef int32_t Integers __attribute__((vector_size(N * sizeof(int32_t))));
    typedef uint16_t Halves __attribute__((vector_size(N * sizeof(uint16_t))));
};
using Vec = Of<LANES>::Floats;
using Words = Of<LANES>::Words;
using Halves = Of<LANES>::Halves;

template <class To, class From>
inline To bits_as(const From& x) {
    static_assert(sizeof(To) == sizeof(From), "the bits of one are those of the other");
    To result;
    std::memcpy(&result, &x, sizeof result);
    return result;
}

inline Vec splat(float x) { return x - Vec{}; }  // not 0 + x: that is an addition, for -0 is not 0
inline Vec load(const float* from) {
    Vec x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
inline void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }  // b where one of them is NaN

// bfloat16 is the upper half of a float; it is rounded to nearest, ties to even.
inline Vec load(const uint16_t* from) {
    Halves x;
    std::memcpy(&x, from, sizeof x);
    return bits_as<Vec>(__builtin_convertvector(x, Words) << 16);
}
inline void store(uint16_t* to, Vec x) {
    const Words bits = bits_as<Words>(x), nan = Words{} + 0x7fc0;
    const Words near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Halves result = __builtin_convertvector(x == x ? near : nan, Halves);
    std::memcpy(to, &result, sizeof result);
}

// `count` numbers, at most LANES, of which the rest is zero, `stride` apart.
template <class T>
inline Vec load_some(const T* from, int64_t count, int64_t stride = 1) {
    if (count >= LANES && stride == 1) return load(from);
    T line[LANES] = {};
    for (int64_t i = 0; i < smaller(count, LANES); ++i) line[i] = from[i * stride];
    return load(line);
}
template <class T>
inline void store_some(T* to, Vec x, int64_t count, int64_t stride = 1) {
    if (count >= LANES && stride == 1) return store(to, x);
    T line[LANES];
    store(line, x);
    for (int64_t i = 0; i < smaller(count, LANES); ++i) to[i * stride] = line[i];
}

// 2^x, to 1e-7 of itself; 0 below 2^-127. x = n + r with |r| <= 1/2: n goes into the exponent, 2^r is
// a polynomial. NaN stays NaN.
inline Vec exp2(Vec x) {
#if defined(__AVX512F__)
    const Vec n = Vec(_mm512_roundscale_ps(__m512(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    x = larger(splat(-127.0f), x);
    const Vec round = splat(12582912.0f);  // 3 * 2^22: a sum with it has no room for fractions
    const Vec shifted = x + round, n = shifted - round;
#endif
    const Vec r = x - n;
    Vec p = splat(1.54614447e-4f);
    p = p * r + 1.34004282e-3f;
    p = p * r + 9.61805668e-3f;
    p = p * r + 5.55032723e-2f;
    p = p * r + 2.40226509e-1f;
    p = p * r + 6.93147207e-1f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return Vec(_mm512_scalef_ps(__m512(p), __m512(n)));
#else
    return p * bits_as<Vec>((bits_as<Words>(shifted) << 23) + (127u << 23));
#endif
}

// The sum and the largest of a register's numbers, by halves.
struct Sum {
    template <class T>
    static T of(T a, T b) { return a + b; }
};
struct Largest {
    template <class T>
    static T of(T a, T b) { return a > b ? a : b; }
};
template <class Operation, int N>
inline float reduce(typename Of<N>::Floats x) {
    if constexpr (N == 2) {
        return Operation::of(x[0], x[1]);
    } else {
        typename Of<N / 2>::Floats halves[2];
        std::memcpy(halves, &x, sizeof x);
        return reduce<Operation, N / 2>(Operation::of(halves[0], halves[1]));
    }
}
inline float sum(Vec x) { return reduce<Sum, LANES>(x); }
inline float largest(Vec x) { return reduce<Largest, LANES>(x); }

// a0 b0 a1 b1 ..., from element `First` of both.
template <int First, int... I>
inline Vec interleaved(Vec a, Vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (First + I / 2 + I % 2 * LANES)...);
#else
    return __builtin_shuffle(a, b, Of<LANES>::Integers{(First + I / 2 + I % 2 * LANES)...});
#endif
}
// Rows become columns: in every round, row i and the row half the block below are interleaved.
inline void transpose(Vec (&rows)[LANES]) {
    constexpr auto all = std::make_integer_sequence<int, LANES>();
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
        Vec next[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; ++i) {
            next[2 * i] = interleaved<0>(rows[i], rows[i + LANES / 2], all);
            next[2 * i + 1] = interleaved<LANES / 2>(rows[i], rows[i + LANES / 2], all);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) rows[i] = next[i];
    }
}

}  // namespace
