// One axis of as many RoI bins as a vector has lanes. It computes what geometry/bin_axis.h does,
// for bins that share nothing.
#pragma once

#include "../../geometry/bin_axis.h"
#include "simd.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// Lane i holds bin i. A window of kLanes<T> pixels from `begin` on holds the weights of most bins.
// If `size` is larger, weights are missing.
template <bool slopes, typename T>
struct PlaneAxis {
  static constexpr int lanes = kLanes<T>;
  Vector<LaneIndex<T>> begin, size;
  Vector<T> count;  // of samples that count
  Vector<T> weight[lanes] = {}, slope[slopes ? lanes : 1] = {};
  int most;  // pixels of the largest bin, within the window

  D2_INLINE PlaneAxis(Vector<T> start, Vector<T> step, int32_t samples, int32_t pixels)
      : count{}, start_(start), step_(step), last_(T(pixels - 1)) {
    Vector<T> lowest = Vector<T>{} + last_, highest{};
    for (int32_t k = 0; k < samples; ++k) {
      const Point point(*this, k);
      lowest = point.inside && point.at < lowest ? point.at : lowest;
      highest = point.inside && point.at > highest ? point.at : highest;
      count += point.inside ? Vector<T>{} + T(1) : Vector<T>{};
    }
    begin = __builtin_convertvector(lowest, Vector<LaneIndex<T>>);
    const Vector<T> first = floor(lowest), end = floor(highest);
    const Vector<T> reach = end - first + (highest > end ? Vector<T>{} + T(2) : Vector<T>{} + T(1));
    size = __builtin_convertvector(count > Vector<T>{} ? reach : Vector<T>{}, Vector<LaneIndex<T>>);
    most = 0;
    for (int lane = 0; lane < lanes; ++lane) most = size[lane] > most ? int(size[lane]) : most;
    most = most < lanes ? most : lanes;
    for (int32_t k = 0; k < samples; ++k) {
      const Point point(*this, k);
      const Vector<T> low = floor(point.at), fraction = point.at - low, zero{};
      const Vector<T> high_weight = point.inside ? fraction : zero;
      const Vector<T> low_weight = point.inside ? T(1) - fraction : zero;
      const Vector<T> between = high_weight > zero ? zero + T(1) : zero;
      Vector<T> place = low - first;  // of the low pixel, counted from pixel j
      for (int j = 0; j < most; ++j, place -= T(1)) {
        weight[j] += place == zero ? low_weight : zero;
        weight[j] += place == zero - T(1) ? high_weight : zero;
        if (!slopes) continue;
        slope[j] -= place == zero ? between : zero;
        slope[j] += place == zero - T(1) ? between : zero;
      }
    }
  }

 private:
  struct Point {
    Vector<LaneIndex<T>> inside;
    Vector<T> at;
    D2_INLINE Point(const PlaneAxis& axis, int32_t k) {
      const Vector<T> point = axis.start_ + T(k) * axis.step_, zero{};
      inside = point >= zero - T(0.5) && point <= zero + (axis.last_ + T(0.5));
      const Vector<T> above = inside && point > zero ? point : zero;
      at = above > zero + axis.last_ ? zero + axis.last_ : above;
    }
  };
  // For numbers that are not negative.
  D2_INLINE static Vector<T> floor(Vector<T> value) {
    return __builtin_convertvector(__builtin_convertvector(value, Vector<LaneIndex<T>>), Vector<T>);
  }
  Vector<T> start_, step_;
  T last_;
};

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
