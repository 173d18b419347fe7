// Bilinear sampling of a map at a real (y, x): value and gradients, host and device, written once.
// Height comes before width and y before x everywhere in this project.
//
// A bilinear sample is separable, so every rule about borders is a rule about one axis. An
// AxisSample holds the two neighbours along an axis, their weights, and their slopes: the
// derivatives of the weights with respect to the coordinate.
//
//   value = sum over a, b in {0, 1} of  y.weight[a] * x.weight[b] * map[y.index[a]][x.index[b]]
//   d/dy  = the same with y.slope[a] instead of y.weight[a];  d/dx  = with x.slope[b]
//
// Indices always lie inside the map, and a neighbour that does not count has weight and slope 0. So
// kernels read and add without bounds checks. Coordinates are compared as floating-point numbers
// before they become integers: NaN, infinity and 1e30 are simply outside. Callers check that sizes
// are positive and below 2^24.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define D2_HOST_DEVICE __host__ __device__ inline
#else
// Always inlined: csrc/cpu/kernels/ is compiled for several instruction sets (simd.h there).
#define D2_HOST_DEVICE __attribute__((always_inline)) inline
#endif

namespace d2_deformable {

// What a deformable convolution reads beyond the border of its input.
// - kZero: zeros surround the map, as in equations (3) and (4) of the paper and the 2018 operator.
// - kLegacy: 0 outside [0, size), and the last row or column in (size - 1, size), as in the 2017
//   operator.
enum class Border { kZero, kLegacy };

template <typename T>
struct AxisSample {
  int32_t index[2];
  T weight[2];
  T slope[2];
};

// Samples one axis for a convolution tap. Returns false if the tap reads 0 and passes no gradient.
// At integer coordinates the slopes are right-hand derivatives, except at exactly -1 (kZero), which
// is outside as in the released operator.
template <typename T>
D2_HOST_DEVICE bool sample_axis(T coordinate, int32_t size, Border border, AxisSample<T>& axis) {
  const bool legacy = border == Border::kLegacy;
  const bool inside = coordinate < T(size) && (legacy ? coordinate >= T(0) : coordinate > T(-1));
  const T at = inside ? coordinate : T(0);  // no branch, so that loops vectorise
  const int32_t low = int32_t(at) - (at < T(0) ? 1 : 0);
  const T fraction = at - T(low);
  const bool has_low = low >= 0, has_high = low + 1 < size;
  axis.index[0] = has_low ? low : 0;
  axis.index[1] = has_high ? low + 1 : low;
  axis.weight[0] = has_low ? (legacy && !has_high ? T(1) : T(1) - fraction) : T(0);
  axis.weight[1] = has_high ? fraction : T(0);
  axis.slope[0] = has_low && (has_high || !legacy) ? T(-1) : T(0);
  axis.slope[1] = has_high ? T(1) : T(0);
  return inside;
}

// Where RoI pooling reads, and what counts. Coordinates outside the map are clamped to it if they
// are not too far out; there slopes are 0.
// - kPool: up to half a pixel out. Other samples are left out of a bin's mean. Slopes at integer
//   coordinates are 0, as in the released deformable pooling.
// - kAlign: up to one pixel out. Other samples are zeros of the mean. Slopes at integer coordinates
//   are right-hand derivatives, as in RoIAlign.
enum class RoiSampling { kPool, kAlign };

// How far out a sample is clamped.
template <typename T>
D2_HOST_DEVICE T margin_of(RoiSampling rule) {
  return rule == RoiSampling::kAlign ? T(1) : T(0.5);
}

// Whether a coordinate, clamped to 0 .. last, has slopes; low is its floor.
template <typename T>
D2_HOST_DEVICE bool has_slopes(T at, T low, T last, RoiSampling rule) {
  return rule == RoiSampling::kAlign ? at > T(0) && at < last : at > low;
}

// Samples one axis for RoI pooling. Returns false if the sample is not clamped and reads nothing.
// Where there are no slopes, both neighbours are one pixel.
template <typename T>
D2_HOST_DEVICE bool sample_axis_clamped(T coordinate, int32_t size, RoiSampling rule,
                                        AxisSample<T>& axis) {
  const T last = T(size - 1), margin = margin_of<T>(rule);
  const bool inside = coordinate >= -margin && coordinate <= last + margin;
  const T at = inside ? coordinate : T(0);
  const T clamped = at < T(0) ? T(0) : (at > last ? last : at);
  const int32_t low = int32_t(clamped);
  const T fraction = clamped - T(low);
  const bool between = has_slopes(clamped, T(low), last, rule);
  axis.index[0] = low;
  axis.index[1] = low + (between ? 1 : 0);
  axis.weight[0] = T(1) - fraction;
  axis.weight[1] = fraction;
  axis.slope[0] = between ? T(-1) : T(0);
  axis.slope[1] = between ? T(1) : T(0);
  return inside;
}

}  // namespace d2_deformable
