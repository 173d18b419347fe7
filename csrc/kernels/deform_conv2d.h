// Kernel bodies of deform_conv2d: one functor per kernel, for host and device, free of ATen.
// Letters in layouts: N images, C channels, K taps, G offset groups; a row is one output position
// (n, ho, wo).
#pragma once

#include "channels.h"

namespace d2_deformable {

struct DeformConv2dSizes {
  int64_t images, channels, height, width;
  int64_t out_channels, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t groups, offset_groups;
  int64_t unit;  // channels per unit: a unit lies in one weight group and in one offset group
  Border border;

  D2_HOST_DEVICE int64_t taps() const { return kernel_h * kernel_w; }
  D2_HOST_DEVICE int64_t image_rows() const { return out_height * out_width; }
  D2_HOST_DEVICE int64_t rows() const { return images * image_rows(); }
  D2_HOST_DEVICE int64_t group_channels() const { return channels / groups; }
  D2_HOST_DEVICE int64_t offset_group_channels() const { return channels / offset_groups; }
  // Channel blocks per offset group: so many partial sums make up each gradient of an offset.
  D2_HOST_DEVICE int64_t partials(const ChannelBlocks& blocks) const {
    return offset_group_channels() / unit * blocks.per_unit;
  }
};

// Rows first .. first + count of the output, whose columns are in memory at one time.
struct RowRange {
  int64_t first, count,
      capacity;  // capacity: rows the column buffer has room for, per weight group
};

// What all kernels of this operator do first: find which tap of which output position a thread
// works on, and for which channels. Index i = (row, tap, channel block), the block fastest.
struct DeformConv2dItem {
  int64_t image, row_in_image, tap, offset_group;
  int64_t block;    // among all channel blocks
  int64_t channel;  // first channel, of `channels`
  int64_t channels;
  int64_t column;  // where the columns of these channels start: layout [groups][capacity][K][C /
                   // groups]

  D2_HOST_DEVICE DeformConv2dItem(const DeformConv2dSizes& s, const ChannelBlocks& blocks,
                                  const RowRange& rows, int64_t i) {
    block = i % blocks.count();
    const int64_t row_tap = i / blocks.count();
    const int64_t row = row_tap / s.taps();
    tap = row_tap % s.taps();
    image = (rows.first + row) / s.image_rows();
    row_in_image = (rows.first + row) % s.image_rows();
    channel = blocks.begin(block);
    channels = blocks.length(block);
    offset_group = channel / s.offset_group_channels();
    const int64_t group = channel / s.group_channels();
    column = ((group * rows.capacity + row) * s.taps() + tap) * s.group_channels() +
             channel % s.group_channels();
  }

  // Of this tap in offset[N][G][K][2][Ho][Wo] (its y; x follows image_rows later) and in
  // mask[N][G][K][Ho][Wo].
  D2_HOST_DEVICE int64_t mask_index(const DeformConv2dSizes& s) const {
    return ((image * s.offset_groups + offset_group) * s.taps() + tap) * s.image_rows() +
           row_in_image;
  }
  D2_HOST_DEVICE int64_t offset_index(const DeformConv2dSizes& s) const {
    return ((image * s.offset_groups + offset_group) * s.taps() + tap) * 2 * s.image_rows() +
           row_in_image;
  }

  // Equation (2) of the paper: p = p0 + p_n + offset; false: p lies outside, the tap reads 0.
  template <typename acc_t, typename scalar_t>
  D2_HOST_DEVICE bool sample(const DeformConv2dSizes& s, const scalar_t* offset,
                             AxisSample<acc_t>& y, AxisSample<acc_t>& x) const {
    const int64_t at = offset_index(s);
    const int64_t grid_y =
        row_in_image / s.out_width * s.stride_h - s.padding_h + tap / s.kernel_w * s.dilation_h;
    const int64_t grid_x =
        row_in_image % s.out_width * s.stride_w - s.padding_w + tap % s.kernel_w * s.dilation_w;
    return sample_axis(acc_t(grid_y) + acc_t(offset[at]), s.height, s.border, y) &&
           sample_axis(acc_t(grid_x) + acc_t(offset[at + s.image_rows()]), s.width, s.border, x);
  }
};

// Columns: what the convolution multiplies its weights with. One call samples one tap at one output
// position for one block of channels. No two calls write the same place.
template <typename scalar_t, typename acc_t>
struct DeformConv2dColumnsKernel {
  DeformConv2dSizes sizes;
  ChannelBlocks blocks;
  RowRange rows;
  const scalar_t* input;   // [N][H][W][C]
  const scalar_t* offset;  // [N][G][K][y, x][Ho][Wo]
  const scalar_t* mask;    // [N][G][K][Ho][Wo], or null: 1 everywhere
  scalar_t* columns;       // [groups][capacity][K][C / groups]

  D2_HOST_DEVICE int64_t count() const { return rows.count * sizes.taps() * blocks.count(); }

  D2_HOST_DEVICE void operator()(int64_t i) const {
    const DeformConv2dItem item(sizes, blocks, rows, i);
    scalar_t* column = columns + item.column;
    AxisSample<acc_t> y, x;
    if (!item.sample(sizes, offset, y, x)) {
      for (int64_t c = 0; c < item.channels; ++c) column[c] = scalar_t(0);
      return;
    }
    const acc_t modulation = mask ? acc_t(mask[item.mask_index(sizes)]) : acc_t(1);
    const Corners<acc_t> corners(y, x, sizes.width * sizes.channels, sizes.channels);
    const scalar_t* map =
        input + item.image * sizes.height * sizes.width * sizes.channels + item.channel;
    const scalar_t* p0 = map + corners.offset[0];
    const scalar_t* p1 = map + corners.offset[1];
    const scalar_t* p2 = map + corners.offset[2];
    const scalar_t* p3 = map + corners.offset[3];
    const acc_t w0 = modulation * corners.weight[0], w1 = modulation * corners.weight[1];
    const acc_t w2 = modulation * corners.weight[2], w3 = modulation * corners.weight[3];
#pragma omp simd
    for (int64_t c = 0; c < item.channels; ++c) {
      column[c] =
          scalar_t(w0 * acc_t(p0[c]) + w1 * acc_t(p1[c]) + w2 * acc_t(p2[c]) + w3 * acc_t(p3[c]));
    }
  }
};

// Gradients of input, offset and mask from those of the columns. One call takes one tap at one
// output position for one block of channels. It owns its place in grad_offset and grad_mask, which
// hold one partial sum per block of an offset group (P of them, added up afterwards), and scatters
// to four pixels of grad_input, which other taps and positions reach too: hence Add, atomic where
// threads share an image's channels.
template <typename scalar_t, typename acc_t, typename Add>
struct DeformConv2dGradientsKernel {
  DeformConv2dSizes sizes;
  ChannelBlocks blocks;
  RowRange rows;
  const scalar_t* grad_columns;  // [groups][capacity][K][C / groups]
  const scalar_t* input;         // [N][H][W][C]
  const scalar_t* offset;        // [N][G][K][y, x][Ho][Wo]
  const scalar_t* mask;          // [N][G][K][Ho][Wo], or null: 1 everywhere
  acc_t* grad_input;             // [N][H][W][C]
  acc_t* grad_offset;            // [P][N][G][K][y, x][Ho][Wo]
  acc_t* grad_mask;              // [P][N][G][K][Ho][Wo], or null
  Add add;

  D2_HOST_DEVICE void operator()(int64_t i) const {
    const DeformConv2dItem item(sizes, blocks, rows, i);
    acc_t grad_y = 0, grad_x = 0, grad_modulation = 0;
    AxisSample<acc_t> y, x;
    if (item.sample(sizes, offset, y, x)) {
      const acc_t modulation = mask ? acc_t(mask[item.mask_index(sizes)]) : acc_t(1);
      const Corners<acc_t> corners(y, x, sizes.width * sizes.channels, sizes.channels);
      const scalar_t* grad = grad_columns + item.column;
      const int64_t map = item.image * sizes.height * sizes.width * sizes.channels + item.channel;
      acc_t dot[4];
      corner_dots(grad, input + map, corners, item.channels, dot);
      grad_y = modulation * weighted_sum(corners.slope_y, dot);
      grad_x = modulation * weighted_sum(corners.slope_x, dot);
      grad_modulation = weighted_sum(corners.weight, dot);
      scatter_to_corners(grad_input + map, corners, grad, modulation, item.channels, add);
    }
    const int64_t part = item.block % sizes.partials(blocks);
    const int64_t mask_numel = sizes.offset_groups * sizes.taps() * sizes.rows();
    acc_t* to = grad_offset + part * 2 * mask_numel + item.offset_index(sizes);
    to[0] = grad_y;
    to[sizes.image_rows()] = grad_x;
    if (grad_mask) grad_mask[part * mask_numel + item.mask_index(sizes)] = grad_modulation;
  }
};

}  // namespace d2_deformable
