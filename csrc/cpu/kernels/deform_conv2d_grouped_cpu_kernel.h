// Deformable convolution, forward, where weight groups are narrower than vectors, down to one
// channel (depthwise): no columns, no product of matrices. A unit is as many groups as fit into a
// vector, of sampled channels and of outputs alike.
#pragma once

#include "../cpu_kernels.h"
#include "sampling_plan.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

constexpr int kGroupedTaps = 49;  // their plans stay in the L2 cache

struct GroupedUnits {
  int64_t channels, outputs;  // of a group
  int64_t group_count;        // weight groups of an offset group
  int64_t width;              // weight groups of a unit
  int64_t count;              // units of an offset group

  GroupedUnits(const DeformConv2dSizes& s, int64_t lanes)
      : channels(s.channels / s.groups), outputs(s.out_channels / s.groups) {
    group_count = s.groups / s.offset_groups;
    const int64_t most = lanes / widest();
    width = group_count < most ? group_count : most;
    count = width ? (group_count + width - 1) / width : 0;
  }
  int64_t widest() const { return channels > outputs ? channels : outputs; }
};

// Whether the shape is for this kernel: at least half of the lanes are used, by two groups or more.
template <typename T>
bool is_grouped(const DeformConv2dSizes& s) {
  constexpr int lanes = kLanes<T>;
  const GroupedUnits units(s, lanes);
  const bool depthwise = units.widest() == 1;
  return s.groups % s.offset_groups == 0 && s.channels >= lanes && s.taps() <= kGroupedTaps &&
         units.width > 1 && 2 * units.width * units.widest() >= lanes &&
         (depthwise || kVectorBytes > 16);  // narrower ones are not permuted in one instruction
}

// weight [O][C/groups][K] -> [G][units][K][C/groups][lanes]: lane o is the unit's output o, or 0.
// One call packs one unit.
template <typename T>
void pack_grouped_weight(const DeformConv2dSizes& s, const T* weight, int64_t unit, T* packed) {
  constexpr int lanes = kLanes<T>;
  const GroupedUnits units(s, lanes);
  const int64_t depth = s.taps() * units.channels, group = unit % units.count * units.width;
  const int64_t left = units.group_count - group;
  const int64_t outputs = (left < units.width ? left : units.width) * units.outputs;
  const T* from = weight + (unit / units.count * units.group_count + group) * units.outputs * depth;
  T* to = packed + unit * depth * lanes;
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    for (int64_t channel = 0; channel < units.channels; ++channel, to += lanes) {
      for (int64_t o = 0; o < lanes; ++o) {
        to[o] = o < outputs ? from[o * depth + channel * s.taps() + tap] : T(0);
      }
    }
  }
}

// Where each lane of the outputs finds a channel of its group among the lanes of the channels.
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

// `vectors` units at one position: outputs from result on, of which the last unit's first `stored`
// are written. Channels are read from `channel` on, which is `shift` lanes before the first unit's.
template <typename T, int vectors, bool depthwise>
D2_INLINE void grouped_units(const GroupedUnits& units, const SamplingPlan<T>* plans, int64_t taps,
                             int p, int64_t channel, int64_t shift, const ChannelLanes<T>* index,
                             const T* weight, const T* bias, T* result, int64_t stored) {
  constexpr int lanes = kLanes<T>;
  const int64_t step = units.width * units.channels, stride = taps * units.channels * lanes;
  const int64_t out_step = units.width * units.outputs;
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
    const SamplingPlan<T>& plan = plans[tap];
    const T *p0 = plan.pixel[0][p] + channel, *p1 = plan.pixel[1][p] + channel;
    const T *p2 = plan.pixel[2][p] + channel, *p3 = plan.pixel[3][p] + channel;
    const T w0 = plan.weight[0][p], w1 = plan.weight[1][p];
    const T w2 = plan.weight[2][p], w3 = plan.weight[3][p];
    Vector<T> sampled[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const int64_t c = v * step;
      sampled[v] = w0 * load(p0 + c) + w1 * load(p1 + c) + w2 * load(p2 + c) + w3 * load(p3 + c);
    }
    for (int64_t j = 0; j < (depthwise ? 1 : units.channels); ++j, weight += lanes) {
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
// [count][O], rows `row` apart. A unit's vector of outputs may reach into those of the next unit,
// which come later in the row and overwrite it; never into the next row, which others may own.
template <typename T, bool depthwise>
void grouped_rows(const DeformConv2dForward<T>& op, int64_t image, int64_t first, int64_t count,
                  T* result, int64_t row) {
  constexpr int lanes = kLanes<T>, together = 4;
  const DeformConv2dSizes& s = op.sizes;
  const GroupedUnits units(s, lanes);
  const int64_t positions = s.image_rows(), taps = s.taps();
  const int64_t size = taps * units.channels * lanes;
  const PixelMap<T> map{op.input + image * s.height * s.width * s.channels, op.zeros, s.channels};
  ChannelLanes<T> index[lanes];
  for (int64_t j = 0; j < units.channels; ++j) {
    for (int64_t o = 0; o < lanes; ++o) index[j][o] = o / units.outputs * units.channels + j;
  }
  SamplingPlan<T> plans[kGroupedTaps];
  for (int64_t done = 0; done < count; done += kPlanned) {
    const int64_t left = count - done;
    const Positions block(s, first + done, left < kPlanned ? left : kPlanned);
    for (int64_t group = 0; group < s.offset_groups; ++group) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t plane = (image * s.offset_groups + group) * taps + tap;
        plan_samples(s, block, tap, op.offset + 2 * plane * positions,
                     op.mask ? op.mask + plane * positions : nullptr, map, plans[tap]);
      }
      for (int p = 0; p < block.count; ++p) {
        int64_t width;
        for (int64_t unit = 0; unit < units.count; unit += width) {
          const int64_t at = group * units.group_count + unit * units.width;
          const int64_t channel = at * units.channels, output = at * units.outputs;
          const int64_t before = (together - 1) * units.width;
          const bool several = unit + together <= units.count &&
                               channel + before * units.channels + lanes <= s.channels &&
                               output + before * units.outputs + lanes <= s.out_channels;
          const T* weight = op.weight + (group * units.count + unit) * size;
          const T* bias = op.bias ? op.bias + output : nullptr;
          T* to = result + (done + p) * row + output;
          width = several ? together : 1;
          if (several) {
            grouped_units<T, together, depthwise>(units, plans, taps, p, channel, 0, index, weight,
                                                  bias, to, lanes);
          } else {
            const int64_t last = s.channels - lanes, from = channel < last ? channel : last;
            grouped_units<T, 1, false>(units, plans, taps, p, from, channel - from, index, weight,
                                       bias, to, s.out_channels - output);
          }
        }
      }
    }
  }
}

template <typename T>
void deform_conv2d_grouped(const DeformConv2dForward<T>& op, int64_t image, int64_t first,
                           int64_t count, T* result, int64_t row) {
  const GroupedUnits units(op.sizes, kLanes<T>);
  const auto run = units.widest() == 1 ? grouped_rows<T, true> : grouped_rows<T, false>;
  run(op, image, first, count, result, row);
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
