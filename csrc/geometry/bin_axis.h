// One axis of a RoI bin's sampling grid as weights of the map's pixels, host and device.
//
// The samples of a bin form a product grid, and whether one counts is separable too. So
//
//   mean of the bin = sum over pixels y, x of  Y.weight(y) * X.weight(x) * map[y][x] / count
//   d/dy            = the same with Y.slope(y) instead of Y.weight(y);  d/dx = with X.slope(x)
//   count           = Y.count() * X.count()
//
// where a pixel's weight is the sum of the weights that the samples near it give it. In a bin three
// pixels wide, 4 x 4 samples then take about 16 reads instead of 64. Sample k lies at
// start + k * step. Borders and integer coordinates follow sample_axis_clamped (sampling.h).
#pragma once

#include <cstdint>

#include "sampling.h"

namespace d2_deformable {

template <typename T>
struct BinAxis {
  T start, step, last;               // last: size - 1
  int32_t sample_begin, sample_end;  // the samples that count; consecutive, as step > 0
  int32_t pixel_begin, pixel_end;    // the pixels they can reach; with gaps if step > 1

  // samples and size are below 2^24.
  D2_HOST_DEVICE BinAxis(T start, T step, int32_t samples, int32_t size)
      : start(start), step(step), last(T(size - 1)), sample_begin(0) {
    int32_t inside = 0;
    for (int32_t k = 0; k < samples; ++k) {
      const T point = start + T(k) * step;
      sample_begin += point < T(-0.5) ? 1 : 0;
      inside += point >= T(-0.5) && point <= T(size) - T(0.5) ? 1 : 0;
    }
    sample_end = sample_begin + inside;
    pixel_begin = pixel_end = 0;
    if (inside == 0) return;
    const T end = at(sample_end - 1);
    pixel_begin = int32_t(at(sample_begin));
    pixel_end = int32_t(end) + (end > T(int32_t(end)) ? 2 : 1);
  }

  D2_HOST_DEVICE int32_t count() const { return sample_end - sample_begin; }

  // The coordinate at which sample k reads.
  D2_HOST_DEVICE T at(int32_t k) const {
    const T point = start + T(k) * step;
    return point < T(0) ? T(0) : (point > last ? last : point);
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
      const T point = at(k), low = T(int32_t(point)), between = point > low ? T(1) : T(0);
      sum -= pixel == P{} + low ? P{} + between : P{};
      sum += pixel == P{} + (low + T(1)) ? P{} + between : P{};
    }
    return sum;
  }
};

}  // namespace d2_deformable
