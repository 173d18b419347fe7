// Deformable convolution, backward: all gradients of one slice of the channels.
#pragma once

#include "../kernels.h"
#include "gemm.h"
#include "sampling_plan.h"
#include "transpose.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// Between channels first_channel .. + count at pixels first .. + pixels of one image's map and rows
// of a matrix, one per pixel.
template <typename T>
struct ChannelMap {
  T* data;  // [C][pixels], or [pixels][C]
  bool channels_last;
  int64_t channels, pixels;

  template <typename To>
  void take(int64_t first_channel, int64_t count, int64_t first, int64_t taken, To* rows,
            int64_t row) const {
    if (channels_last) {
      const T* from = data + first * channels + first_channel;
      for (int64_t p = 0; p < taken; ++p) {
        __builtin_memcpy(rows + p * row, from + p * channels, count * sizeof(T));
      }
    } else {
      transpose<To>(data + first_channel * pixels + first, pixels, rows, row, count, taken);
    }
  }

  void put(int64_t first_channel, int64_t count, const T* rows, int64_t row) const {
    if (channels_last) {
      for (int64_t p = 0; p < pixels; ++p) {
        __builtin_memcpy(data + p * channels + first_channel, rows + p * row, count * sizeof(T));
      }
    } else {
      transpose<T>(rows, row, data + first_channel * pixels, pixels, pixels, count);
    }
  }
};

// Channels of a slice that share a weight group, and their place among the slice's lanes.
struct SliceRun {
  int64_t lane, channels, first_channel, group;
  int64_t packed_weight, grad_weight;  // places in scratch memory

  // Of the first of its channels in weight [O][C/groups][K], for output `o` of its group.
  int64_t weight_index(const DeformConv2dSizes& s, int64_t o) const {
    const int64_t output = group * (s.out_channels / s.groups) + o;
    return (output * (s.channels / s.groups) + first_channel % (s.channels / s.groups)) * s.taps();
  }
};

// A slice and its scratch memory. Each of its offset groups fills whole vectors with its channels.
template <typename T>
struct Slice {
  static constexpr int kRuns = 64;  // slices have no more channels, unless in one run

  int64_t first_group, groups;      // offset groups
  int64_t first_channel, channels;  // of each of them; first_channel of the first
  int64_t group_lanes, lanes;
  int64_t outputs, panels;  // of a weight group, and their panels
  int64_t first_weight_group, weight_groups;
  int64_t row;  // of columns and their gradients
  int64_t grad_weight_row;
  int runs = 0;
  SliceRun run[kRuns];
  int64_t map, grad_map, columns, grad_columns, grad_output, scratch;  // places; size

  Slice(const DeformConv2dBackward<T>& op, int64_t index) {
    const DeformConv2dSizes& s = op.sizes;
    const ChannelSlices& slices = op.slices;
    const int64_t part = index % slices.per_group,
                  rest = slices.group_channels - part * slices.width;
    first_group = index / slices.per_group * slices.groups;
    groups = s.offset_groups - first_group < slices.groups ? s.offset_groups - first_group
                                                           : slices.groups;
    first_channel = first_group * slices.group_channels + part * slices.width;
    channels = rest < slices.width ? rest : slices.width;
    group_lanes = round_up(channels, kLanes<T>);
    lanes = groups * group_lanes;
    row = lanes + kLanes<T>;

    const int64_t weight_channels = s.channels / s.groups;
    outputs = s.out_channels / s.groups;
    panels = (outputs + kPanel<T> - 1) / kPanel<T>;
    grad_weight_row = round_up(outputs, kLanes<T>) + kLanes<T>;
    first_weight_group = first_channel / weight_channels;
    scratch = 0;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = first_channel + group * slices.group_channels;
      for (int64_t c = begin, next; c < begin + channels; c = next) {
        const int64_t weight_group = c / weight_channels,
                      end = (weight_group + 1) * weight_channels;
        next = end < begin + channels ? end : begin + channels;
        SliceRun& r = run[runs++];
        r = {group * group_lanes + c - begin, next - c, c, weight_group, 0, 0};
        r.packed_weight = take(s.taps() * outputs * round_up(r.channels, kPanel<T>));
        r.grad_weight = take(s.taps() * r.channels * grad_weight_row);
        weight_groups = weight_group + 1 - first_weight_group;
      }
    }
    map = take((s.height * s.width + 1) * lanes);
    grad_map = take((s.height * s.width + 1) * lanes);
    columns = take(op.tile * row);
    grad_columns = take(op.tile * row);
    grad_output = take(weight_groups * panels * op.tile * kPanel<T>);
  }

  int64_t take(int64_t count) {
    const int64_t place = scratch;
    scratch += round_up(count, 64);
    return place;
  }
};

// weight [O][C/groups][K] -> [K][panels][outputs][kPanel], panels of the run's channels, the last
// one filled up with zeros.
template <typename T>
void pack_run(const DeformConv2dSizes& s, const T* weight, const Slice<T>& slice,
              const SliceRun& run, T* packed) {
  const int64_t taps = s.taps();
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t panel = 0; panel < run.channels; panel += kPanel<T>) {
      const int64_t rest = run.channels - panel;
      const int64_t filled = rest < kPanel<T> ? rest : int64_t(kPanel<T>);
      for (int64_t o = 0; o < slice.outputs; ++o, packed += kPanel<T>) {
        const T* from = weight + run.weight_index(s, o) + panel * taps + tap;
        for (int64_t c = 0; c < filled; ++c) packed[c] = from[c * taps];
        for (int64_t c = filled; c < kPanel<T>; ++c) packed[c] = 0;
      }
    }
  }
}

// [K][channels][outputs] -> grad_weight [O][C/groups][K], the run's own part of it.
template <typename T>
void unpack_run(const DeformConv2dSizes& s, const T* packed, const Slice<T>& slice,
                const SliceRun& run, T* grad_weight) {
  constexpr int lanes = kLanes<T>;
  const int64_t taps = s.taps(), size = run.channels * taps;
  const auto row = [&](int64_t k) {
    return packed + (k % taps * run.channels + k / taps) * slice.grad_weight_row;
  };
  for (int64_t o0 = 0; o0 < slice.outputs; o0 += lanes) {
    const int64_t rest = slice.outputs - o0, rows = rest < lanes ? rest : lanes;
    int64_t k = 0;
    for (; k + lanes <= size; k += lanes) {
      Vector<T> square[lanes];
      for (int i = 0; i < lanes; ++i) square[i] = load(row(k + i) + o0);
      transpose_square<T>(square);
      for (int64_t o = 0; o < rows; ++o) {
        store(grad_weight + run.weight_index(s, o0 + o) + k, square[o]);
      }
    }
    for (; k < size; ++k) {
      for (int64_t o = 0; o < rows; ++o) {
        grad_weight[run.weight_index(s, o0 + o) + k] = row(k)[o0 + o];
      }
    }
  }
}

// For each planned position: its column from the pixels, and from the gradient of the column that
// of the pixels, added at to_gradient from them, and dots[k] = pixel k . gradient.
template <typename T>
void sample_and_scatter(const SamplingPlan<T>& plan, int count, int64_t lanes,
                        const T* grad_columns, T* columns, int64_t row, int64_t to_gradient,
                        T (*dots)[4]) {
  for (int p = 0; p < count; ++p, grad_columns += row, columns += row) {
    const T *p0 = plan.pixel[0][p], *p1 = plan.pixel[1][p];
    const T *p2 = plan.pixel[2][p], *p3 = plan.pixel[3][p];
    T* g0 = const_cast<T*>(p0) + to_gradient;
    T* g1 = const_cast<T*>(p1) + to_gradient;
    T* g2 = const_cast<T*>(p2) + to_gradient;
    T* g3 = const_cast<T*>(p3) + to_gradient;
    const T w0 = plan.weight[0][p], w1 = plan.weight[1][p];
    const T w2 = plan.weight[2][p], w3 = plan.weight[3][p];
    Vector<T> d0{}, d1{}, d2{}, d3{};
    for (int64_t c = 0; c < lanes; c += kLanes<T>) {
      const Vector<T> grad = load(grad_columns + c);
      const Vector<T> v0 = load(p0 + c), v1 = load(p1 + c), v2 = load(p2 + c), v3 = load(p3 + c);
      d0 += grad * v0, d1 += grad * v1, d2 += grad * v2, d3 += grad * v3;
      store(columns + c, w0 * v0 + w1 * v1 + w2 * v2 + w3 * v3);
      store(g0 + c, load(g0 + c) + w0 * grad);
      store(g1 + c, load(g1 + c) + w1 * grad);
      store(g2 + c, load(g2 + c) + w2 * grad);
      store(g3 + c, load(g3 + c) + w3 * grad);
    }
    store_sums<T>(dots[p], d0, d1, d2, d3);
  }
}

// The columns of one tap at output positions first .. first + count of an image, from the gradients
// of these columns the slice's shares of grad_offset and grad_mask, and what they add to grad_map.
template <typename T>
void sample_tap_backward(const DeformConv2dBackward<T>& op, const Slice<T>& slice, int64_t part,
                         int64_t image, int64_t tap, int64_t first, int64_t count, T* scratch) {
  const DeformConv2dSizes& s = op.sizes;
  const int64_t positions = s.image_rows(), pixels = s.height * s.width;
  const int64_t planes = s.images * s.offset_groups * s.taps();
  SamplingPlan<T> plan;
  SamplingSlopes<T> slopes;
  T dots[kPlanned][4];
  for (int64_t done = 0; done < count; done += kPlanned) {
    const int64_t left = count - done;
    const Positions block(s, first + done, left < kPlanned ? left : kPlanned);
    for (int64_t group = 0; group < slice.groups; ++group) {
      const int64_t lane = group * slice.group_lanes;
      const int64_t plane = (image * s.offset_groups + slice.first_group + group) * s.taps() + tap;
      const T* pixel = scratch + slice.map + lane;
      const PixelMap<T> map{pixel, pixel + pixels * slice.lanes, slice.lanes};
      plan_samples(s, block, tap, op.offset + 2 * plane * positions,
                   op.mask ? op.mask + plane * positions : nullptr, map, plan, slopes);
      sample_and_scatter(plan, block.count, slice.group_lanes,
                         scratch + slice.grad_columns + done * slice.row + lane,
                         scratch + slice.columns + done * slice.row + lane, slice.row,
                         slice.grad_map - slice.map, dots);
      T* grad_y = op.grad_offset + 2 * (part * planes + plane) * positions + block.first;
      T* grad_x = grad_y + positions;
      const auto weighted = [&](const T(&by)[4][kPlanned], int p) {
        return by[0][p] * dots[p][0] + by[1][p] * dots[p][1] + by[2][p] * dots[p][2] +
               by[3][p] * dots[p][3];
      };
      for (int p = 0; p < block.count; ++p) {
        grad_y[p] = weighted(slopes.y, p);
        grad_x[p] = weighted(slopes.x, p);
      }
      if (!op.grad_mask) continue;
      T* grad_mask = op.grad_mask + (part * planes + plane) * positions + block.first;
      for (int p = 0; p < block.count; ++p) grad_mask[p] = weighted(slopes.mask, p);
    }
  }
}

// One call computes all gradients of one slice of the channels over one part of the images: those
// of the columns, grad_output x weight, tile by tile and tap by tap; from them its channels of
// grad_input and its shares of grad_offset and grad_mask; and columns x grad_output, its part of
// grad_weight. It samples from, and adds to, copies of its channels alone. No two calls write the
// same place, hence no atomics, and each adds in the order of positions.
template <typename T>
void deform_conv2d_backward_slice(const DeformConv2dBackward<T>& op, int64_t index,
                                  int64_t image_part, T* scratch) {
  const DeformConv2dSizes& s = op.sizes;
  const Slice<T> slice(op, index);
  const int64_t positions = s.image_rows(), pixels = s.height * s.width, taps = s.taps();
  const int64_t panel = op.tile * kPanel<T>;
  for (int64_t k = 0; k < slice.scratch; ++k) scratch[k] = 0;
  for (int r = 0; r < slice.runs; ++r) {
    pack_run(s, op.weight, slice, slice.run[r], scratch + slice.run[r].packed_weight);
  }
  T* grad_output = scratch + slice.grad_output;
  T* grad_columns = scratch + slice.grad_columns;
  const int64_t last = s.images * (image_part + 1) / op.image_parts;
  for (int64_t image = s.images * image_part / op.image_parts; image < last; ++image) {
    const int64_t image_size = s.channels * pixels;
    const ChannelMap<const T> input{op.input + image * image_size, op.channels_last, s.channels,
                                    pixels};
    const ChannelMap<T> grad_input{op.grad_input + image * image_size, op.channels_last, s.channels,
                                   pixels};
    const ChannelMap<const T> outputs{op.grad_output + image * s.out_channels * positions,
                                      op.grad_output_channels_last, s.out_channels, positions};
    for (int64_t group = 0; group < slice.groups; ++group) {
      input.take(slice.first_channel + group * op.slices.group_channels, slice.channels, 0, pixels,
                 scratch + slice.map + group * slice.group_lanes, slice.lanes);
    }
    for (int64_t k = 0; k < pixels * slice.lanes; ++k) scratch[slice.grad_map + k] = 0;

    for (int64_t first = 0; first < positions; first += op.tile) {
      const int64_t count = positions - first < op.tile ? positions - first : op.tile;
      for (int64_t k = 0; k < slice.weight_groups * slice.panels; ++k) {
        const int64_t o = k % slice.panels * kPanel<T>, rest = slice.outputs - o;
        const int64_t group = slice.first_weight_group + k / slice.panels;
        outputs.take(group * slice.outputs + o, rest < kPanel<T> ? rest : int64_t(kPanel<T>), first,
                     count, grad_output + k * panel, kPanel<T>);
      }
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int r = 0; r < slice.runs; ++r) {
          const SliceRun& run = slice.run[r];
          const int64_t group = run.group - slice.first_weight_group;
          const GemmOperand<T> a{grad_output + group * slice.panels * panel, kPanel<T>, 1,
                                 kPanel<T>, panel};
          const int64_t run_panel = slice.outputs * kPanel<T>;
          gemm(
              count, run.channels, slice.outputs, a,
              scratch + run.packed_weight + tap * slice.outputs * round_up(run.channels, kPanel<T>),
              run_panel, grad_columns + run.lane, slice.row, false);
        }
        sample_tap_backward(op, slice, index % op.slices.per_group, image, tap, first, count,
                            scratch);
        for (int r = 0; r < slice.runs; ++r) {
          const SliceRun& run = slice.run[r];
          const int64_t group = run.group - slice.first_weight_group;
          const GemmOperand<T> a{scratch + slice.columns + run.lane, 1, slice.row, count, 0};
          gemm(run.channels, slice.outputs, count, a, grad_output + group * slice.panels * panel,
               panel, scratch + run.grad_weight + tap * run.channels * slice.grad_weight_row,
               slice.grad_weight_row, true);
        }
      }
    }
    for (int64_t group = 0; group < slice.groups; ++group) {
      grad_input.put(slice.first_channel + group * op.slices.group_channels, slice.channels,
                     scratch + slice.grad_map + group * slice.group_lanes, slice.lanes);
    }
  }
  T* grad_weight = op.grad_weight + image_part * s.out_channels * (s.channels / s.groups) * taps;
  for (int r = 0; r < slice.runs; ++r) {
    unpack_run(s, scratch + slice.run[r].grad_weight, slice, slice.run[r], grad_weight);
  }
}

// How many numbers of scratch memory such a call needs.
template <typename T>
int64_t deform_conv2d_backward_scratch(const DeformConv2dBackward<T>& op, int64_t slice) {
  return Slice<T>(op, slice).scratch;
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
