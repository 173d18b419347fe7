// Vectors as wide as a register of the target instruction set, by the vector extensions of GCC and
// Clang. Arithmetic and comparisons are written as for numbers, and a product in a sum becomes a
// fused multiply-add where the instruction set has one.
//
// Everything under csrc/cpu/kernels/ is compiled once per instruction set (setup.py), in a
// namespace named after it. Code shared with other files (geometry/, cpu/*_call.h) is always
// inlined, and functions of the standard library are not used. Otherwise the linker would keep one
// copy of a function, perhaps the one with instructions that the machine lacks.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "../../geometry/sampling.h"

#ifndef D2_CPU_TARGET
#error "D2_CPU_TARGET names the instruction set: baseline, avx2 or avx512"
#endif

#define D2_INLINE __attribute__((always_inline)) inline

namespace d2_deformable {
namespace D2_CPU_TARGET {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

// An integer of the size of T: a vector has as many lanes of either.
template <typename T>
using LaneIndex = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// The address needs no alignment.
template <typename T>
D2_INLINE Vector<T> load(const T* from) {
  Vector<T> vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return vector;
}
template <typename T>
D2_INLINE void store(T* to, Vector<T> vector) {
  __builtin_memcpy(to, &vector, sizeof(vector));
}

// Whether a comparison is true in any lane.
template <typename T, typename Mask>
D2_INLINE bool any(Mask mask) {
  int64_t words[kVectorBytes / 8], found = 0;
  __builtin_memcpy(words, &mask, sizeof(words));
  for (int64_t word : words) found |= word;
  return found != 0;
}

// Alternates lanes of a and b, from lane `first` on: a0 b0 a1 b1 ...
template <typename T, int first, int... lane>
D2_INLINE Vector<T> interleave(Vector<T> a, Vector<T> b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (first + lane / 2 + lane % 2 * kLanes<T>)...);
#else
  return __builtin_shuffle(a, b,
                           Vector<LaneIndex<T>>{(first + lane / 2 + lane % 2 * kLanes<T>)...});
#endif
}

// Moves lane `by` + k to lane k.
template <typename T, int by, int... lane>
D2_INLINE Vector<T> rotate(Vector<T> a, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, a, ((lane + by) % kLanes<T>)...);
#else
  return __builtin_shuffle(a, Vector<LaneIndex<T>>{((lane + by) % kLanes<T>)...});
#endif
}

// Stores the sums over the lanes of four vectors, with two shuffles for each.
template <typename T>
D2_INLINE void store_sums(T* to, Vector<T> a, Vector<T> b, Vector<T> c, Vector<T> d) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>();
  constexpr int half = kLanes<T> / 2;
  if constexpr (kLanes<T> == 2) {
    store(to, interleave<T, 0>(a, b, lanes) + interleave<T, half>(a, b, lanes));
    store(to + 2, interleave<T, 0>(c, d, lanes) + interleave<T, half>(c, d, lanes));
  } else {
    const Vector<T> ac = interleave<T, 0>(a, c, lanes) + interleave<T, half>(a, c, lanes);
    const Vector<T> bd = interleave<T, 0>(b, d, lanes) + interleave<T, half>(b, d, lanes);
    Vector<T> abcd = interleave<T, 0>(ac, bd, lanes) + interleave<T, half>(ac, bd, lanes);
    if constexpr (kLanes<T> >= 16) abcd += rotate<T, 8 % kLanes<T>>(abcd, lanes);
    if constexpr (kLanes<T> >= 8) abcd += rotate<T, 4>(abcd, lanes);
    __builtin_memcpy(to, &abcd, 4 * sizeof(T));
  }
}

// Transposes a square of lanes x lanes numbers. Interleaving the first half of the rows with the
// second doubles the runs of numbers that are in place. This is done log2(lanes) times.
template <typename T>
D2_INLINE void transpose_square(Vector<T> (&rows)[kLanes<T>]) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>();
  constexpr int half = kLanes<T> / 2;
#pragma GCC unroll 4
  for (int run = 1; run < kLanes<T>; run *= 2) {
    Vector<T> next[kLanes<T>];
#pragma GCC unroll 8
    for (int k = 0; k < half; ++k) {
      next[2 * k] = interleave<T, 0>(rows[k], rows[k + half], lanes);
      next[2 * k + 1] = interleave<T, half>(rows[k], rows[k + half], lanes);
    }
#pragma GCC unroll 16
    for (int k = 0; k < kLanes<T>; ++k) rows[k] = next[k];
  }
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
