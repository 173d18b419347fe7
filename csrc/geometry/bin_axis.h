// One axis of a RoI bin's sampling grid as weights of the map's pixels, host and device.
//
// The samples of a bin form a product grid, and whether one counts is separable too. So
//
//   mean of the bin = sum over pixels y, x of  Y.weight(y) * X.weight(x) * map[y][x] / count
//   d/dy            = the same with Y.slope(y) instead of Y.weight(y);  d/dx = with X.slope(x)
//   count           = Y.count() * X.count()
//
// where a pixel's weight is the sum of the weights that the samples near it give it. In a bin three
// pixels wide, 4 x 4 samples then take about 16 reads instead of 64. Borders and integer
// coordinates follow sample_axis_clamped (sampling.h).
#pragma once

#include <cstdint>

#include "sampling.h"

namespace d2_deformable {

// The samples of a bin along one axis: sample k lies at start + k * step.
template <typename T>
struct BinSampling {
  T start, step;
  int32_t samples;  // below 2^24
  RoiSampling rule;
  T divisor;  // kAlign: what the mean divides by along this axis. kPool: the samples that count
};

// Samples of RoIAlign: at the centres of equal cells of a bin that begins at `start`. `samples` is
// their number, or 0 for as many as the side has pixels, rounded up; at most kMostAlignSamples.
// Samples before and after the map are left out, which bounds the work by the map's size. A bin
// with a coordinate that is NaN has no samples and the divisor NaN.
constexpr int32_t kMostAlignSamples = 1 << 20;

template <typename T>
D2_HOST_DEVICE BinSampling<T> align_sampling(T start, T side, int32_t samples, int32_t size) {
  constexpr RoiSampling rule = RoiSampling::kAlign;
  const T most = T(kMostAlignSamples);
  const T bounded = side > T(0) ? (side < most ? side : most) : T(0);
  const T whole = T(int32_t(bounded));
  const T count = samples > 0 ? T(samples) : whole + (bounded > whole ? T(1) : T(0));
  // From low to high coordinates, also in a bin of negative size.
  const T cell = side / (count > T(0) ? count : T(1)), step = cell < T(0) ? -cell : cell;
  const T first = start + (cell < T(0) ? count - T(0.5) : T(0.5)) * cell;
  if (!(first == first)) return {first, T(0), 0, rule, first};
  // Two samples more on either side than the map needs, for roundings.
  const T before = (T(-1) - first) / step - T(2), after = T(size) - first;
  const T begin = before > T(0) ? (before < count ? before : count) : T(0);
  const T reach = after / step + T(3);
  const T end = after < T(0) ? T(0) : (reach < count ? reach : count);
  const int32_t skipped = int32_t(begin), rest = int32_t(end) - skipped;
  return {first + T(skipped) * step, step, rest > 0 ? rest : 0, rule, count};
}

template <typename T>
struct BinAxis {
  T start, step, last;  // last: size - 1
  RoiSampling rule;
  T divisor;
  int32_t sample_begin, sample_end;  // the samples that read pixels; consecutive, as step >= 0
  int32_t pixel_begin, pixel_end;    // the pixels they can reach; with gaps if step > 1

  // size is below 2^24.
  D2_HOST_DEVICE BinAxis(const BinSampling<T>& sampling, int32_t size)
      : start(sampling.start),
        step(sampling.step),
        last(T(size - 1)),
        rule(sampling.rule),
        divisor(sampling.divisor),
        sample_begin(0) {
    const T margin = margin_of<T>(rule);
    int32_t inside = 0;
    for (int32_t k = 0; k < sampling.samples; ++k) {
      const T point = start + T(k) * step;
      sample_begin += point < -margin ? 1 : 0;
      inside += point >= -margin && point <= last + margin ? 1 : 0;
    }
    sample_end = sample_begin + inside;
    pixel_begin = pixel_end = 0;
    if (inside == 0) return;
    const T end = at(sample_end - 1);
    pixel_begin = int32_t(at(sample_begin));
    pixel_end = int32_t(end) + (has_slopes(end, T(int32_t(end)), last, rule) ? 2 : 1);
  }

  // What the mean divides by along this axis.
  D2_HOST_DEVICE T count() const {
    return rule == RoiSampling::kAlign ? divisor : T(sample_end - sample_begin);
  }

  // The coordinate at which sample k reads.
  D2_HOST_DEVICE T at(int32_t k) const {
    const T point = start + T(k) * step;
    return point < T(0) ? T(0) : (point > last ? last : point);
  }

  // Keeps the samples of `all` that can give weight or slope to pixels begin .. end - 1. To be
  // called for pixels further and further to the right, first without samples.
  D2_HOST_DEVICE void keep_samples_near(const BinAxis& all, T begin, T end) {
    while (sample_begin < all.sample_end && at(sample_begin) < begin - T(1)) ++sample_begin;
    sample_end = sample_end > sample_begin ? sample_end : sample_begin;
    while (sample_end < all.sample_end && at(sample_end) < end) ++sample_end;
  }

  // P is T, or a vector of T for several pixels at a time.
  template <typename P>
  D2_HOST_DEVICE P weight(P pixel) const {
    P sum{};
    for (int32_t k = sample_begin; k < sample_end; ++k) {
      const T point = at(k), low = T(int32_t(point)), fraction = point - low;
      sum += pixel == P{} + low ? P{} + (T(1) - fraction) : P{};
      sum += pixel == P{} + (low + T(1)) ? P{} + fraction : P{};
    }
    return sum;
  }
  // Derivative of weight(pixel) with respect to start.
  template <typename P>
  D2_HOST_DEVICE P slope(P pixel) const {
    P sum{};
    for (int32_t k = sample_begin; k < sample_end; ++k) {
      const T point = at(k), low = T(int32_t(point));
      const T between = has_slopes(point, low, last, rule) ? T(1) : T(0);
      sum -= pixel == P{} + low ? P{} + between : P{};
      sum += pixel == P{} + (low + T(1)) ? P{} + between : P{};
    }
    return sum;
  }
};

}  // namespace d2_deformable
