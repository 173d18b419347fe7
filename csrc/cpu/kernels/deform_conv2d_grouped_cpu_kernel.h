// Deformable convolution, forward, for weight groups narrower than a vector, down to one channel
// (depthwise). It needs no columns and no matrix multiply. A bundle is as many weight groups as fit
// into one vector, both with their sampled channels and with their outputs.
#pragma once

#include "../cpu_kernels.h"
#include "sampling_points.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

constexpr int kGroupedTaps = 49;  // at most; their sampling points stay in the L2 cache

struct GroupedBundles {
  int64_t channels, outputs;  // of a weight group
  int64_t groups;             // weight groups of an offset group
  int64_t width;              // weight groups of a bundle
  int64_t count;              // bundles of an offset group

  GroupedBundles(const DeformConv2dSizes& s, int64_t lanes)
      : channels(s.channels / s.groups), outputs(s.out_channels / s.groups) {
    groups = s.groups / s.offset_groups;
    const int64_t most = lanes / widest();
    width = groups < most ? groups : most;
    count = width ? (groups + width - 1) / width : 0;
  }
  int64_t widest() const { return channels > outputs ? channels : outputs; }
};

// Whether this kernel handles the shape: two weight groups or more use at least half of the lanes.
template <typename T>
bool is_grouped(const DeformConv2dSizes& s) {
  constexpr int lanes = kLanes<T>;
  const GroupedBundles bundles(s, lanes);
  const bool depthwise = bundles.widest() == 1;
  return s.groups % s.offset_groups == 0 && s.channels >= lanes && s.taps() <= kGroupedTaps &&
         bundles.width > 1 && 2 * bundles.width * bundles.widest() >= lanes &&
         (depthwise || kVectorBytes > 16);  // narrower vectors take several instructions to permute
}

// weight [O][C/groups][K] -> [G][bundles][K][C/groups][lanes]: lane o is the bundle's output o, or
// 0. One call writes the panel of one bundle.
template <typename T>
void write_grouped_weight_panel(const DeformConv2dSizes& s, const T* weight, int64_t bundle,
                                T* panels) {
  constexpr int lanes = kLanes<T>;
  const GroupedBundles bundles(s, lanes);
  const int64_t depth = s.taps() * bundles.channels, group = bundle % bundles.count * bundles.width;
  const int64_t left = bundles.groups - group;
  const int64_t outputs = (left < bundles.width ? left : bundles.width) * bundles.outputs;
  const T* from =
      weight + (bundle / bundles.count * bundles.groups + group) * bundles.outputs * depth;
  T* to = panels + bundle * depth * lanes;
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    for (int64_t channel = 0; channel < bundles.channels; ++channel, to += lanes) {
      for (int64_t o = 0; o < lanes; ++o) {
        to[o] = o < outputs ? from[o * depth + channel * s.taps() + tap] : T(0);
      }
    }
  }
}

// For each lane of the outputs, the lane of the sampled channels that holds a channel of its weight
// group.
template <typename T>
using ChannelLanes = Vector<LaneIndex<T>>;

template <typename T>
D2_INLINE Vector<T> permute(Vector<T> a, ChannelLanes<T> index) {
#if defined(__clang__)
  Vector<T> permuted;
  for (int k = 0; k < kLanes<T>; ++k) permuted[k] = a[index[k] & (kLanes<T> - 1)];
  return permuted;
#else
  return __builtin_shuffle(a, index);
#endif
}

// Computes `vectors` bundles at one position, into `result` and what follows. With one bundle, only
// its first `stored` outputs are written. Channels are read from `channel` on, which is `shift`
// channels before those of the first bundle.
template <typename T, int vectors, bool depthwise>
D2_INLINE void grouped_bundles(const GroupedBundles& bundles, const SamplingPoints<T>* points,
                               int64_t taps, int p, int64_t channel, int64_t shift,
                               const ChannelLanes<T>* index, const T* weight, const T* bias,
                               T* result, int64_t stored) {
  constexpr int lanes = kLanes<T>;
  const int64_t step = bundles.width * bundles.channels, stride = taps * bundles.channels * lanes;
  const int64_t out_step = bundles.width * bundles.outputs;
  const bool whole = vectors > 1 || stored >= lanes;
  Vector<T> sums[vectors] = {};
  if (bias) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      if (whole) {
        sums[v] = load(bias + v * out_step);
      } else {
        __builtin_memcpy(&sums[v], bias, stored * sizeof(T));
      }
    }
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    const SamplingPoints<T>& tap_points = points[tap];
    const T *p0 = tap_points.pixel[0][p] + channel, *p1 = tap_points.pixel[1][p] + channel;
    const T *p2 = tap_points.pixel[2][p] + channel, *p3 = tap_points.pixel[3][p] + channel;
    const T w0 = tap_points.weight[0][p], w1 = tap_points.weight[1][p];
    const T w2 = tap_points.weight[2][p], w3 = tap_points.weight[3][p];
    Vector<T> sampled[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const int64_t c = v * step;
      sampled[v] = w0 * load(p0 + c) + w1 * load(p1 + c) + w2 * load(p2 + c) + w3 * load(p3 + c);
    }
    for (int64_t j = 0; j < (depthwise ? 1 : bundles.channels); ++j, weight += lanes) {
      const ChannelLanes<T> lane = index[j] + LaneIndex<T>(shift);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        sums[v] +=
            load(weight + v * stride) * (depthwise ? sampled[v] : permute<T>(sampled[v], lane));
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    if (whole) {
      store(result + v * out_step, sums[v]);
    } else {
      __builtin_memcpy(result, &sums[v], stored * sizeof(T));
    }
  }
}

// One call computes output positions first .. first + count of an image in all channels: result
// [count][O], whose rows are `row` numbers apart. A bundle's vector of outputs may reach into the
// outputs of the next bundle, which is computed later and overwrites them. It never reaches into
// the next row, which another call may own.
template <typename T, bool depthwise>
void grouped_rows(const DeformConv2dForward<T>& op, int64_t image, int64_t first, int64_t count,
                  T* result, int64_t row) {
  constexpr int lanes = kLanes<T>, together = 4;
  const DeformConv2dSizes& s = op.sizes;
  const GroupedBundles bundles(s, lanes);
  const int64_t plane_size = s.image_rows(), taps = s.taps();
  const int64_t size = taps * bundles.channels * lanes;
  const PixelMap<T> map{op.input + image * s.height * s.width * s.channels, op.zeros, s.channels};
  ChannelLanes<T> index[lanes];
  for (int64_t j = 0; j < bundles.channels; ++j) {
    for (int64_t o = 0; o < lanes; ++o) index[j][o] = o / bundles.outputs * bundles.channels + j;
  }
  SamplingPoints<T> points[kGroupedTaps];
  for (int64_t done = 0; done < count; done += kPositions) {
    const int64_t left = count - done;
    const Positions positions(s, first + done, left < kPositions ? left : kPositions);
    for (int64_t offset_group = 0; offset_group < s.offset_groups; ++offset_group) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t plane = (image * s.offset_groups + offset_group) * taps + tap;
        find_points(s, positions, tap, op.offset + 2 * plane * plane_size,
                    op.mask ? op.mask + plane * plane_size : nullptr, map, points[tap]);
      }
      for (int p = 0; p < positions.count; ++p) {
        int64_t width;
        for (int64_t bundle = 0; bundle < bundles.count; bundle += width) {
          const int64_t at = offset_group * bundles.groups + bundle * bundles.width;
          const int64_t channel = at * bundles.channels, output = at * bundles.outputs;
          const int64_t before = (together - 1) * bundles.width;
          const bool several = bundle + together <= bundles.count &&
                               channel + before * bundles.channels + lanes <= s.channels &&
                               output + before * bundles.outputs + lanes <= s.out_channels;
          const T* weight = op.weight + (offset_group * bundles.count + bundle) * size;
          const T* bias = op.bias ? op.bias + output : nullptr;
          T* to = result + (done + p) * row + output;
          width = several ? together : 1;
          if (several) {
            grouped_bundles<T, together, depthwise>(bundles, points, taps, p, channel, 0, index,
                                                    weight, bias, to, lanes);
          } else {
            const int64_t last = s.channels - lanes, from = channel < last ? channel : last;
            grouped_bundles<T, 1, false>(bundles, points, taps, p, from, channel - from, index,
                                         weight, bias, to, s.out_channels - output);
          }
        }
      }
    }
  }
}

template <typename T>
void deform_conv2d_grouped(const DeformConv2dForward<T>& op, int64_t image, int64_t first,
                           int64_t count, T* result, int64_t row) {
  const GroupedBundles bundles(op.sizes, kLanes<T>);
  const auto run = bundles.widest() == 1 ? grouped_rows<T, true> : grouped_rows<T, false>;
  run(op, image, first, count, result, row);
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
