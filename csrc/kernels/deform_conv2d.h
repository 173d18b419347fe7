// Kernel bodies of deform_conv2d: one functor per kernel, for host and device, free of ATen.
// Letters in layouts: N images, C channels, K taps, G offset groups, Cg = C / weight groups.
// A row is one output position (n, ho, wo). scalar_t is the type of maps, acc_t that of coordinates
// and sums: at least float32.
#pragma once

#include "../geometry/deform_conv2d.h"
#include "channels.h"

namespace d2_deformable {

// Rows of the output whose columns are in memory at one time.
struct RowRange {
  int64_t first, count;
  int64_t capacity;  // of the column buffer, in rows
};

// What all kernels of this operator do first: find which tap of which output position they work on,
// and for which channels. Index i = (row, tap, channel block), the block fastest; a block lies in
// one offset group.
struct DeformConv2dItem {
  int64_t row, image, row_in_image, tap;
  int64_t offset_group, part;  // part: of the offset group's blocks
  int64_t channel, channels;   // first channel and length of the block

  D2_HOST_DEVICE DeformConv2dItem(const DeformConv2dSizes& s, const ChannelBlocks& blocks,
                                  const RowRange& rows, int64_t i) {
    const int64_t block = i % blocks.count(), row_tap = i / blocks.count();
    row = row_tap / s.taps();
    tap = row_tap % s.taps();
    image = (rows.first + row) / s.image_rows();
    row_in_image = (rows.first + row) % s.image_rows();
    offset_group = block / blocks.per_unit;
    part = block % blocks.per_unit;
    channel = blocks.begin(block);
    channels = blocks.length(block);
  }

  // In mask[N][G][K][Ho][Wo], and of y in offset[N][G][K][y, x][Ho][Wo]; x follows image_rows
  // later.
  D2_HOST_DEVICE int64_t mask_index(const DeformConv2dSizes& s) const {
    return tap_index(s) * s.image_rows() + row_in_image;
  }
  D2_HOST_DEVICE int64_t offset_index(const DeformConv2dSizes& s) const {
    return tap_index(s) * 2 * s.image_rows() + row_in_image;
  }
  D2_HOST_DEVICE int64_t tap_index(const DeformConv2dSizes& s) const {
    return (image * s.offset_groups + offset_group) * s.taps() + tap;
  }
  // Of the image's first pixel in input[N][H][W][C].
  D2_HOST_DEVICE int64_t image_index(const DeformConv2dSizes& s) const {
    return image * s.height * s.width * s.channels;
  }

  // Calls visit(c, length, column) for each run of the block's channels that lies in one weight
  // group: channels c .. c + length of a pixel stand at columns[groups][capacity][K][Cg] + column.
  template <typename Visit>
  D2_HOST_DEVICE void for_each_run(const DeformConv2dSizes& s, const RowRange& rows,
                                   const Visit& visit) const {
    const int64_t end = channel + channels, group_channels = s.channels / s.groups;
    int64_t c = channel;
    while (c < end) {
      const int64_t group = c / group_channels, group_end = (group + 1) * group_channels;
      const int64_t next = group_end < end ? group_end : end;
      const int64_t column = ((group * rows.capacity + row) * s.taps() + tap) * group_channels;
      visit(c, next - c, column + c - group * group_channels);
      c = next;
    }
  }

  // False: the point lies outside, the tap reads 0.
  template <typename acc_t>
  D2_HOST_DEVICE bool sample(const DeformConv2dSizes& s, const acc_t* offset, AxisSample<acc_t>& y,
                             AxisSample<acc_t>& x) const {
    const int64_t at = offset_index(s);
    return sample_tap(s, row_in_image / s.out_width, row_in_image % s.out_width, tap, offset[at],
                      offset[at + s.image_rows()], y, x);
  }
};

// Columns: what the convolution multiplies its weights with. One call samples one tap at one output
// position for one block of channels. No two calls write the same place.
template <typename scalar_t, typename acc_t>
struct DeformConv2dColumnsKernel {
  DeformConv2dSizes sizes;
  ChannelBlocks blocks;
  RowRange rows;
  const scalar_t* input;  // [N][H][W][C]
  const acc_t* offset;    // [N][G][K][y, x][Ho][Wo]
  const acc_t* mask;      // [N][G][K][Ho][Wo], or null: 1 everywhere
  scalar_t* columns;      // [groups][capacity][K][Cg]

  D2_HOST_DEVICE int64_t count() const { return rows.count * sizes.taps() * blocks.count(); }

  D2_HOST_DEVICE void operator()(int64_t i) const {
    const DeformConv2dItem item(sizes, blocks, rows, i);
    AxisSample<acc_t> y, x;
    if (!item.sample(sizes, offset, y, x)) {
      item.for_each_run(sizes, rows, [&](int64_t, int64_t length, int64_t column) {
        for (int64_t k = 0; k < length; ++k) columns[column + k] = scalar_t(0);
      });
      return;
    }
    const acc_t modulation = mask ? mask[item.mask_index(sizes)] : acc_t(1);
    const Corners<acc_t> corners(y, x, sizes.width * sizes.channels, sizes.channels);
    const scalar_t* map = input + item.image_index(sizes);
    item.for_each_run(sizes, rows, [&](int64_t c, int64_t length, int64_t column) {
      scalar_t* to = columns + column;
      interpolate(map + c, corners, length,
                  [=](int64_t k, acc_t value) { to[k] = scalar_t(modulation * value); });
    });
  }
};

// Gradients of input, offset and mask from those of the columns. One call takes one tap at one
// output position for one block of channels. It owns its place in grad_offset and grad_mask, which
// hold a partial sum for each block of an offset group (P of them, added up afterwards), and
// scatters to four pixels of grad_input, which other taps and positions reach too: hence Add,
// atomic where threads share an image's channels.
template <typename scalar_t, typename acc_t, typename Add>
struct DeformConv2dGradientsKernel {
  DeformConv2dSizes sizes;
  ChannelBlocks blocks;
  RowRange rows;
  const scalar_t* grad_columns;  // [groups][capacity][K][Cg]
  const scalar_t* input;         // [N][H][W][C]
  const acc_t* offset;           // [N][G][K][y, x][Ho][Wo]
  const acc_t* mask;             // [N][G][K][Ho][Wo], or null: 1 everywhere
  acc_t* grad_input;             // [N][H][W][C]
  acc_t* grad_offset;            // [P][N][G][K][y, x][Ho][Wo]
  acc_t* grad_mask;              // [P][N][G][K][Ho][Wo], or null
  Add add;

  D2_HOST_DEVICE int64_t count() const { return rows.count * sizes.taps() * blocks.count(); }

  D2_HOST_DEVICE void operator()(int64_t i) const {
    const DeformConv2dItem item(sizes, blocks, rows, i);
    acc_t grad_y = 0, grad_x = 0, grad_modulation = 0;
    AxisSample<acc_t> y, x;
    if (item.sample(sizes, offset, y, x)) {
      const acc_t modulation = mask ? mask[item.mask_index(sizes)] : acc_t(1);
      const Corners<acc_t> corners(y, x, sizes.width * sizes.channels, sizes.channels);
      const int64_t map = item.image_index(sizes);
      acc_t dots[4] = {0, 0, 0, 0};
      item.for_each_run(sizes, rows, [&](int64_t c, int64_t length, int64_t column) {
        const scalar_t* grad = grad_columns + column;
        add_corner_dots(grad, input + map + c, corners, length, dots);
        scatter_to_corners(grad_input + map + c, corners, grad, modulation, length, add);
      });
      grad_y = modulation * weighted_sum(corners.slope_y, dots);
      grad_x = modulation * weighted_sum(corners.slope_x, dots);
      grad_modulation = weighted_sum(corners.weight, dots);
    }
    const int64_t mask_numel = sizes.offset_groups * sizes.taps() * sizes.rows();
    acc_t* to = grad_offset + item.part * 2 * mask_numel + item.offset_index(sizes);
    to[0] = grad_y;
    to[sizes.image_rows()] = grad_x;
    if (grad_mask) grad_mask[item.part * mask_numel + item.mask_index(sizes)] = grad_modulation;
  }
};

}  // namespace d2_deformable
