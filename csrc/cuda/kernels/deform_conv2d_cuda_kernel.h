// CUDA kernels of deform_conv2d, free of ATen. Maps are channels-last throughout.
// Letters in layouts: N images, C channels, K taps, G offset groups, Cg = C / weight groups.
// A row is one output position (n, ho, wo). scalar_t is the type of maps, acc_t that of coordinates
// and sums: at least float32.
//
// A unit of work is one sampling point: one tap of one row, for the channels of one offset group.
// `lanes` neighbouring lanes of a warp share a unit (plan_lanes in plan.h). Each lane computes
// where the point lies, keeps that in registers, and works on every `lanes`-th pack of the
// channels. A pack is 16 bytes, or one channel where channels or addresses are not multiples of 16
// bytes (kPacked is false).
#pragma once

#include <type_traits>

#include "../../geometry/deform_conv2d_geometry.h"
#include "../divisor.h"
#include "../plan.h"
#include "../simt.h"

namespace d2_deformable {

// A pack of consecutive channels: 16 bytes if kPacked, else one value.
template <typename T, bool kPacked>
struct Channels {
  static constexpr int kSize = kPacked ? Pack<T>::kSize : 1;
  T values[kSize];

  // Nobody may write this memory while the kernel runs.
  static D2_DEVICE Channels load_constant(const T* address) {
    if constexpr (kPacked) {
      return from(Pack<T>::load_constant(address));
    } else {
      return {{*address}};
    }
  }
  static D2_DEVICE Channels load(const T* address) {
    if constexpr (kPacked) {
      return from(Pack<T>::load(address));
    } else {
      return {{*address}};
    }
  }
  D2_DEVICE void store(T* address) const {
    if constexpr (kPacked) {
      Pack<T> pack;
      for (int k = 0; k < kSize; ++k) pack[k] = values[k];
      pack.store(address);
    } else {
      *address = values[0];
    }
  }

 private:
  static D2_DEVICE Channels from(const Pack<T>& pack) {
    Channels channels;
    for (int k = 0; k < kSize; ++k) channels.values[k] = pack[k];
    return channels;
  }
};

// Adds weight * gradient to consecutive channels, to which other threads add as well.
template <typename acc_t, typename T, bool kPacked>
D2_DEVICE void atomic_add_scaled(acc_t* address, acc_t weight, const Channels<T, kPacked>& grad) {
  constexpr int kSize = Channels<T, kPacked>::kSize;
  if constexpr (std::is_same_v<acc_t, float> && kSize % 4 == 0) {
    for (int k = 0; k < kSize; k += 4) {
      const T* values = grad.values + k;
      atomic_add4(address + k, weight * acc_t(values[0]), weight * acc_t(values[1]),
                  weight * acc_t(values[2]), weight * acc_t(values[3]));
    }
  } else {
    for (int k = 0; k < kSize; ++k) atomic_add(address + k, weight * acc_t(grad.values[k]));
  }
}

// The four pixels of a bilinear sample, in the order (y0, x0), (y0, x1), (y1, x0), (y1, x1), with
// their weights and slopes. These are all 0 if the point lies outside.
template <typename acc_t>
struct SamplingPoint {
  AxisSample<acc_t> y, x;
  int32_t pixel[4];  // index in the image

  D2_DEVICE acc_t weight(int k) const { return y.weight[k >> 1] * x.weight[k & 1]; }
  D2_DEVICE acc_t slope_y(int k) const { return y.slope[k >> 1] * x.weight[k & 1]; }
  D2_DEVICE acc_t slope_x(int k) const { return y.weight[k >> 1] * x.slope[k & 1]; }
};

// The rows whose columns are in memory, and where they sample. The host checks that units,
// channels, pixels of a map and positions of an output are fewer than 2^30 each. Elements of a
// tensor may be more.
template <typename acc_t>
struct DeformConv2dChunk {
  DeformConv2dSizes sizes;
  const acc_t* offset;                  // [N][G][K][y, x][Ho][Wo]
  const acc_t* mask;                    // [N][G][K][Ho][Wo], or null: 1 everywhere
  int64_t first_image, first_position;  // of the first row
  int64_t rows;

  int64_t unit_channels;  // of an offset group
  Divisor offset_groups, group_channels, taps, kernel_w, image_rows, out_width;

  DeformConv2dChunk(const DeformConv2dSizes& s, const acc_t* offset_map, const acc_t* mask_map,
                    int64_t first_row, int64_t row_count)
      : sizes(s),
        offset(offset_map),
        mask(mask_map),
        first_image(first_row / s.image_rows()),
        first_position(first_row % s.image_rows()),
        rows(row_count),
        unit_channels(s.channels / s.offset_groups),
        offset_groups(s.offset_groups),
        group_channels(s.channels / s.groups),
        taps(s.taps()),
        kernel_w(s.kernel_w),
        image_rows(s.image_rows()),
        out_width(s.out_width) {}

  D2_HOST_DEVICE int64_t units() const { return rows * sizes.taps() * sizes.offset_groups; }

  // Index in columns[rows][weight group][K][Cg]. The channels of a pack are in one weight group.
  D2_DEVICE int64_t column(int64_t row, int64_t tap, int64_t channel) const {
    if (sizes.groups == 1) return (row * sizes.taps() + tap) * sizes.channels + channel;
    const auto [group, in_group] = group_channels.divide(uint32_t(channel));
    return ((row * sizes.groups + group) * sizes.taps() + tap) * group_channels.divisor() +
           in_group;
  }
  // Index in input[N][H][W][C].
  D2_DEVICE int64_t image_index(int64_t image) const {
    return image * sizes.height * sizes.width * sizes.channels;
  }
};

// One sampling point of a chunk. Offset groups are the fastest dimension of units, then taps, so
// consecutive units write consecutive columns.
template <typename acc_t>
struct DeformConv2dUnit {
  uint32_t row, tap, offset_group;  // the row counts from the chunk's first row
  int64_t image;
  uint32_t position;  // of the row in its image

  static D2_DEVICE DeformConv2dUnit of(const DeformConv2dChunk<acc_t>& chunk, int64_t index) {
    const auto [row_and_tap, offset_group] = chunk.offset_groups.divide(uint32_t(index));
    const auto [row, tap] = chunk.taps.divide(row_and_tap);
    const auto [image, position] = chunk.image_rows.divide(uint32_t(chunk.first_position) + row);
    return {row, tap, offset_group, chunk.first_image + image, position};
  }

  // Index in mask[N][G][K][Ho][Wo], and of y in offset[N][G][K][y, x][Ho][Wo]. x is image_rows
  // further.
  D2_DEVICE int64_t mask_index(const DeformConv2dSizes& s) const {
    return tap_index(s) * s.image_rows() + position;
  }
  D2_DEVICE int64_t offset_index(const DeformConv2dSizes& s) const {
    return tap_index(s) * 2 * s.image_rows() + position;
  }
  D2_DEVICE int64_t tap_index(const DeformConv2dSizes& s) const {
    return (image * s.offset_groups + offset_group) * s.taps() + tap;
  }

  // Returns false if the point lies outside: the tap reads 0.
  D2_DEVICE bool sample(const DeformConv2dChunk<acc_t>& chunk, AxisSample<acc_t>& y,
                        AxisSample<acc_t>& x) const {
    const acc_t* offset = chunk.offset + offset_index(chunk.sizes);
    const auto [out_y, out_x] = chunk.out_width.divide(position);
    const auto [tap_y, tap_x] = chunk.kernel_w.divide(tap);
    return sample_tap(chunk.sizes, out_y, out_x, tap_y, tap_x, offset[0],
                      offset[chunk.sizes.image_rows()], y, x);
  }
  D2_DEVICE SamplingPoint<acc_t> point(const DeformConv2dChunk<acc_t>& chunk) const {
    SamplingPoint<acc_t> point;
    const bool inside = sample(chunk, point.y, point.x);
    for (int k = 0; k < 4; ++k) {
      point.pixel[k] = point.y.index[k >> 1] * int32_t(chunk.sizes.width) + point.x.index[k & 1];
    }
    if (!inside) {
      for (int k = 0; k < 2; ++k) {
        point.y.weight[k] = point.y.slope[k] = point.x.weight[k] = point.x.slope[k] = acc_t(0);
      }
    }
    return point;
  }
  D2_DEVICE acc_t modulation(const DeformConv2dChunk<acc_t>& chunk) const {
    return chunk.mask ? chunk.mask[mask_index(chunk.sizes)] : acc_t(1);
  }
};

// Calls work(index, lane) for all indices below count, each in `lanes` neighbouring threads. An
// index may be `count` or more, because all lanes of a warp must take part in its sums.
template <typename Work>
D2_DEVICE void for_each_index(int64_t count, int lanes, const Work& work) {
  const int64_t per_block = blockDim.x / lanes;
  for (int64_t first = blockIdx.x * per_block; first < count; first += gridDim.x * per_block) {
    work(first + threadIdx.x / lanes, int(threadIdx.x) % lanes);
  }
}

// Computes the columns, which the convolution multiplies by its weight. One thread samples every
// lanes-th pack of one unit's channels. No two threads write the same place. Pixels of weight 0 are
// not read; at integer offsets these are three of four.
template <typename scalar_t, typename acc_t, bool kPacked>
struct DeformConv2dColumnsKernel {
  DeformConv2dChunk<acc_t> chunk;
  int lanes;
  const scalar_t* input;  // [N][H][W][C]
  scalar_t* columns;      // [rows][weight group][K][Cg]

  D2_DEVICE void operator()() const {
    using Values = Channels<scalar_t, kPacked>;
    const int64_t units = chunk.units(), unit_channels = chunk.unit_channels;
    const int64_t channels = chunk.sizes.channels;
    for_each_index(units, lanes, [&](int64_t index, int lane) {
      if (index >= units) return;
      const auto unit = DeformConv2dUnit<acc_t>::of(chunk, index);
      const SamplingPoint<acc_t> point = unit.point(chunk);
      const acc_t modulation = unit.modulation(chunk);
      const int64_t first = unit.offset_group * unit_channels;
      const scalar_t* image = input + chunk.image_index(unit.image) + first;
      for (int64_t c = lane * Values::kSize; c < unit_channels; c += lanes * Values::kSize) {
        Values pixel[4] = {};
        for (int k = 0; k < 4; ++k) {
          if (point.weight(k) != acc_t(0)) {
            pixel[k] = Values::load_constant(image + point.pixel[k] * channels + c);
          }
        }
        Values value;
        for (int i = 0; i < Values::kSize; ++i) {
          acc_t sum = 0;
          for (int k = 0; k < 4; ++k) sum += point.weight(k) * acc_t(pixel[k].values[i]);
          value.values[i] = scalar_t(modulation * sum);
        }
        value.store(columns + chunk.column(unit.row, unit.tap, first + c));
      }
    });
  }
};

// Everything that backward does between its two matrix multiplies, in one pass over the gradients
// of the columns. One thread works on every lanes-th pack of one unit's channels. It
// - multiplies the gradients by the four pixels and sums over channels. The sums of all lanes
//   give the unit's gradients of offset and mask, which no other unit writes;
// - scatters the gradients to the four pixels of grad_input. Other units add there too,
//   hence atomic adds, four floats at a time;
// - computes the columns again, for the gradient of the weight, and overwrites their gradients.
template <typename scalar_t, typename acc_t, bool kPacked>
struct DeformConv2dGradientsKernel {
  static constexpr int kMaxThreads = kLaunchThreads;

  DeformConv2dChunk<acc_t> chunk;
  int lanes;
  const scalar_t* input;         // [N][H][W][C]
  const scalar_t* grad_columns;  // [rows][weight group][K][Cg]
  scalar_t* columns;             // same layout, same memory
  acc_t* grad_offset;            // [N][G][K][y, x][Ho][Wo]
  acc_t* grad_mask;              // [N][G][K][Ho][Wo], or null
  acc_t* grad_input;             // [N][H][W][C], or null if another kernel adds to it

  D2_DEVICE void operator()() const {
    using Values = Channels<scalar_t, kPacked>;
    const DeformConv2dSizes& s = chunk.sizes;
    const int64_t units = chunk.units(), unit_channels = chunk.unit_channels;
    for_each_index(units, lanes, [&](int64_t index, int lane) {
      const bool exists = index < units;
      const auto unit = DeformConv2dUnit<acc_t>::of(chunk, exists ? index : 0);
      const SamplingPoint<acc_t> point = unit.point(chunk);
      const acc_t modulation = unit.modulation(chunk);
      const int64_t first = unit.offset_group * unit_channels;
      const int64_t image = chunk.image_index(unit.image) + first;
      const int64_t end = exists ? unit_channels : 0;
      acc_t dots[4] = {0, 0, 0, 0};
      for (int64_t c = lane * Values::kSize; c < end; c += lanes * Values::kSize) {
        const int64_t column = chunk.column(unit.row, unit.tap, first + c);
        const Values grad = Values::load(grad_columns + column);
        Values pixel[4] = {};
        for (int k = 0; k < 4; ++k) {
          if (point.weight(k) != acc_t(0) || point.slope_y(k) != acc_t(0) ||
              point.slope_x(k) != acc_t(0)) {
            pixel[k] = Values::load_constant(input + image + point.pixel[k] * s.channels + c);
          }
        }
        Values value;
        for (int i = 0; i < Values::kSize; ++i) {
          acc_t sum = 0;
          for (int k = 0; k < 4; ++k) {
            const acc_t at = acc_t(pixel[k].values[i]);
            sum += point.weight(k) * at;
            dots[k] += acc_t(grad.values[i]) * at;
          }
          value.values[i] = scalar_t(modulation * sum);
        }
        value.store(columns + column);
        if (!grad_input) continue;
        for (int k = 0; k < 4; ++k) {
          const acc_t weight = modulation * point.weight(k);
          if (weight != acc_t(0)) {
            atomic_add_scaled(grad_input + image + point.pixel[k] * s.channels + c, weight, grad);
          }
        }
      }
      acc_t grad_y = 0, grad_x = 0, grad_modulation = 0;
      for (int k = 0; k < 4; ++k) {
        grad_y += modulation * point.slope_y(k) * dots[k];
        grad_x += modulation * point.slope_x(k) * dots[k];
        grad_modulation += point.weight(k) * dots[k];
      }
      grad_y = warp_sum(grad_y, lanes);
      grad_x = warp_sum(grad_x, lanes);
      if (exists && lane == 0) {
        grad_offset[unit.offset_index(s)] = grad_y;
        grad_offset[unit.offset_index(s) + s.image_rows()] = grad_x;
      }
      if (!grad_mask) return;
      grad_modulation = warp_sum(grad_modulation, lanes);
      if (exists && lane == 0) grad_mask[unit.mask_index(s)] = grad_modulation;
    });
  }
};

// The gradient of the input, summed in the same order in every run
// (torch.use_deterministic_algorithms). One thread owns one channel of one line (row of the map) of
// one image. It loops over all rows and taps of the chunk in order and adds what falls on its line,
// so there are no atomics. This is many times the work of scattering.
template <typename scalar_t, typename acc_t>
struct DeformConv2dOwnedInputGradientKernel {
  static constexpr int kMaxThreads = kLaunchThreads;

  DeformConv2dChunk<acc_t> chunk;
  const scalar_t* grad_columns;  // [rows][weight group][K][Cg]
  acc_t* grad_input;             // [N][H][W][C]

  // Threads with work: one per channel and line of the images of which the chunk has rows.
  D2_HOST_DEVICE int64_t owners() const {
    const int64_t last = chunk.first_position + chunk.rows - 1;
    return (last / chunk.sizes.image_rows() + 1) * chunk.sizes.height * chunk.sizes.channels;
  }

  D2_DEVICE void operator()() const {
    const DeformConv2dSizes& s = chunk.sizes;
    const int64_t count = owners();
    for_each_index(count, 1, [&](int64_t index, int) {
      if (index >= count) return;
      const uint32_t channel = uint32_t(index % s.channels);
      const int64_t line = index / s.channels;
      const int64_t image = line / s.height;  // counts from the chunk's first image
      const int64_t first = image * s.image_rows() - chunk.first_position;
      const int64_t last = first + s.image_rows();
      const int32_t y = int32_t(line % s.height);
      acc_t* to =
          grad_input + chunk.image_index(chunk.first_image) + line * s.width * s.channels + channel;
      DeformConv2dUnit<acc_t> unit;
      unit.image = chunk.first_image + image;
      unit.offset_group = channel / uint32_t(chunk.unit_channels);
      unit.row = uint32_t(first > 0 ? first : 0);
      unit.position = uint32_t(unit.row - first);
      const uint32_t rows = uint32_t(last < chunk.rows ? last : chunk.rows) - unit.row;
      for (uint32_t k = 0; k < rows; ++k, ++unit.row, ++unit.position) {
        for (unit.tap = 0; unit.tap < s.taps(); ++unit.tap) add_tap(unit, y, channel, to);
      }
    });
  }

 private:
  D2_DEVICE void add_tap(const DeformConv2dUnit<acc_t>& unit, int32_t line, uint32_t channel,
                         acc_t* to) const {
    AxisSample<acc_t> y, x;
    if (!unit.sample(chunk, y, x)) return;
    acc_t weight = 0;  // both neighbours may be the same line; one of them has weight 0
    for (int a = 0; a < 2; ++a) weight += y.index[a] == line ? y.weight[a] : acc_t(0);
    if (weight == acc_t(0)) return;
    const acc_t grad = weight * unit.modulation(chunk) *
                       acc_t(grad_columns[chunk.column(unit.row, unit.tap, channel)]);
    for (int b = 0; b < 2; ++b) {
      if (x.weight[b] != acc_t(0)) to[x.index[b] * chunk.sizes.channels] += x.weight[b] * grad;
    }
  }
};

}  // namespace d2_deformable
