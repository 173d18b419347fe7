// The arithmetic of one RoI bin, for neighbouring channels of a channels-last map. A bin is a grid
// of pixels, and the weight of each is the product of a weight along y and one along x.
#pragma once

#include "../../geometry/bin_axis.h"
#include "../roi_pool_call.h"
#include "simd.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// Lists the pixels that a bin reads along an axis, `stride` numbers apart. With kAlign a pixel may
// have a slope and no weight.
template <bool slopes, typename T>
D2_INLINE AxisPixels<T> list_axis_pixels(const BinAxis<T>& axis, int64_t stride,
                                         AxisPixel<T>* pixels) {
  constexpr int lanes = kLanes<T>;
  Vector<T> pixel;
  for (int lane = 0; lane < lanes; ++lane) pixel[lane] = T(axis.pixel_begin + lane);
  int64_t size = 0;
  // A large bin may have as many samples as pixels; the time must not grow with their product.
  const bool large = axis.pixel_end - axis.pixel_begin > lanes;
  BinAxis<T> near = axis;
  if (large) near.sample_end = near.sample_begin;
  for (int32_t first = axis.pixel_begin; first < axis.pixel_end; first += lanes) {
    T weight[lanes], slope[lanes];
    if (large) near.keep_samples_near(axis, T(first), T(first + lanes));
    store(weight, near.weight(pixel));
    if (slopes) store(slope, near.slope(pixel));
    const int count = axis.pixel_end - first < lanes ? axis.pixel_end - first : lanes;
    for (int lane = 0; lane < count; ++lane) {
      pixels[size] = {(first + lane) * stride, weight[lane], slopes ? slope[lane] : T(0)};
      const bool slope_alone = slopes && axis.rule == RoiSampling::kAlign && slope[lane] != T(0);
      size += weight[lane] != T(0) || slope_alone ? 1 : 0;
    }
    pixel += T(lanes);
  }
  return {pixels, size, axis.count()};
}

// Touches the first `count` lanes only: what follows in memory may belong to other threads.
template <typename T>
D2_INLINE Vector<T> load_first(const T* from, int64_t count) {
  if (count >= kLanes<T>) return load(from);
  T lanes[kLanes<T>] = {};
  for (int64_t k = 0; k < count; ++k) lanes[k] = from[k];
  return load(lanes);
}
template <typename T>
D2_INLINE void store_first(T* to, Vector<T> vector, int64_t count) {
  if (count >= kLanes<T>) return store(to, vector);
  T lanes[kLanes<T>];
  store(lanes, vector);
  for (int64_t k = 0; k < count; ++k) to[k] = lanes[k];
}
// Calls run(first channel, number of vectors as a compile-time constant) until `channels` are done.
template <typename T, typename Run>
D2_INLINE void for_vectors(int64_t channels, const Run& run) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t first = 0;
  for (; first + 3 * lanes < channels; first += 4 * lanes) {
    run(first, std::integral_constant<int, 4>());
  }
  if (first + 2 * lanes < channels) return run(first, std::integral_constant<int, 3>());
  if (first + lanes < channels) return run(first, std::integral_constant<int, 2>());
  if (first < channels) return run(first, std::integral_constant<int, 1>());
}

// to[c] = the mean of the bin's samples. Lanes beyond the last channel read whatever is there.
template <typename T>
D2_INLINE void pool_bin(const T* map, const AxisPixels<T>& y, const AxisPixels<T>& x,
                        int64_t channels, T* to) {
  constexpr int64_t lanes = kLanes<T>;
  const T samples = y.count * x.count, count = samples == T(0) ? T(1) : samples;
  for_vectors<T>(channels, [&](int64_t first, auto vectors) {
    constexpr int n = decltype(vectors)::value;
    Vector<T> sums[n] = {};
    for (int64_t i = 0; i < y.size; ++i) {
      const T* row = map + first + y.pixels[i].offset;
      Vector<T> row_sums[n] = {};
      for (int64_t j = 0; j < x.size; ++j) {
        const T* pixel = row + x.pixels[j].offset;
#pragma GCC unroll 4
        for (int v = 0; v < n; ++v) row_sums[v] += x.pixels[j].weight * load(pixel + v * lanes);
      }
#pragma GCC unroll 4
      for (int v = 0; v < n; ++v) sums[v] += y.pixels[i].weight * row_sums[v];
    }
#pragma GCC unroll 4
    for (int v = 0; v < n; ++v) {
      const int64_t c = first + v * lanes;
      store_first<T>(to + c, sums[v] / count, channels - c);
    }
  });
}

// Gradient with respect to a shift of the bin, in map pixels.
template <typename T>
struct ShiftGradient {
  T y, x;
};

// Adds the bin's gradient to the gradients of the pixels that it reads. With a map, returns the
// gradient with respect to a shift of the bin. Lanes beyond the last channel add 0.
template <bool with_map, typename T>
D2_INLINE ShiftGradient<T> spread_bin(const T* grad, const T* map, const AxisPixels<T>& y,
                                      const AxisPixels<T>& x, int64_t channels, T* grad_map) {
  constexpr int64_t lanes = kLanes<T>;
  if (y.size == 0 || x.size == 0) return {0, 0};
  const T count = y.count * x.count;
  Vector<T> grad_y{}, grad_x{};
  for_vectors<T>(channels, [&](int64_t first, auto vectors) {
    constexpr int n = decltype(vectors)::value;
    Vector<T> g[n], by_y[n] = {}, by_x[n] = {};
    bool zero = true;
#pragma GCC unroll 4
    for (int v = 0; v < n; ++v) {
      const int64_t c = first + v * lanes;
      g[v] = load_first<T>(grad + c, channels - c) / count;
      zero = zero && !any<T>(g[v] != Vector<T>{});
    }
    if (zero) return;
    for (int64_t i = 0; i < y.size; ++i) {
      const int64_t row = first + y.pixels[i].offset;
      Vector<T> value[n] = {}, slope[n] = {};
      for (int64_t j = 0; j < x.size; ++j) {
        const int64_t pixel = row + x.pixels[j].offset;
        const T weight = y.pixels[i].weight * x.pixels[j].weight;
#pragma GCC unroll 4
        for (int v = 0; v < n; ++v) {
          const int64_t at = pixel + v * lanes;
          store(grad_map + at, load(grad_map + at) + weight * g[v]);
          if (!with_map) continue;
          const Vector<T> read = load(map + at);
          value[v] += x.pixels[j].weight * read;
          slope[v] += x.pixels[j].slope * read;
        }
      }
      if (!with_map) continue;
#pragma GCC unroll 4
      for (int v = 0; v < n; ++v) {
        by_y[v] += y.pixels[i].slope * value[v];
        by_x[v] += y.pixels[i].weight * slope[v];
      }
    }
    if (!with_map) return;
#pragma GCC unroll 4
    for (int v = 0; v < n; ++v) {
      grad_y += g[v] != Vector<T>{} ? g[v] * by_y[v] : Vector<T>{};
      grad_x += g[v] != Vector<T>{} ? g[v] * by_x[v] : Vector<T>{};
    }
  });
  if (!with_map) return {0, 0};
  T sums[4];
  store_sums<T>(sums, grad_y, grad_x, grad_y, grad_x);
  return {sums[0], sums[1]};
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
