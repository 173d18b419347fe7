// Arguments of the CPU kernels of deform_conv2d: what a call reads and writes. Free of ATen, as the
// kernels are.
// Letters in layouts: N images, C channels, O output channels, K taps, G offset groups.
#pragma once

#include <cstdint>

#include "../geometry/deform_conv2d_geometry.h"

namespace d2_deformable {

// Panels that the outputs of one weight group take. A panel holds `panel` outputs, those of one tap
// and channel next to each other.
D2_HOST_DEVICE int64_t panels_per_group(const DeformConv2dSizes& s, int64_t panel) {
  return (s.out_channels / s.groups + panel - 1) / panel;
}

template <typename T>
struct DeformConv2dForward {
  DeformConv2dSizes sizes;
  int64_t tile;          // output positions of one image per kernel call
  int64_t taps_at_once;  // taps whose columns are in memory at once
  const T* input;        // [N][H][W][C]
  const T* zeros;        // [C]
  const T* offset;       // [N][G][K][y, x][Ho][Wo]
  const T* mask;         // [N][G][K][Ho][Wo], or null: 1 everywhere
  const T* weight;       // in panels: [groups][panels][K][C/groups][panel], or, for
                         // deform_conv2d_grouped, [bundles][K][C/groups][lanes]
  const T* bias;         // [O], or null
  T* output;             // [N][O][Ho][Wo], or [N][Ho][Wo][O]
  bool channels_last;

  // Strides of matrix rows in scratch memory. The padding avoids strides that are a power of 2, at
  // which all rows would share one set of the cache.
  D2_HOST_DEVICE int64_t column_row() const {
    return taps_at_once * sizes.channels + 64 / sizeof(T);
  }
  D2_HOST_DEVICE int64_t result_row() const { return sizes.out_channels + 64 / sizeof(T); }
  D2_HOST_DEVICE int64_t scratch() const {
    return tile * (column_row() + (channels_last ? 0 : result_row()));
  }
};

// The channels, cut into slices. A slice is a fraction of one offset group or several whole ones,
// and one kernel call owns its gradients. The cut depends on the shape alone, because it decides
// the order of sums over channels.
struct ChannelSlices {
  int64_t offset_group_channels;
  int64_t per_offset_group;  // slices of an offset group
  int64_t offset_groups;     // of a slice; 1 where per_offset_group > 1
  int64_t width;             // channels of a slice in each of its offset groups
  int64_t count;
};

template <typename T>
struct DeformConv2dBackward {
  DeformConv2dSizes sizes;
  ChannelSlices slices;
  int64_t image_ranges;  // each of consecutive images, with its own grad_weight
  int64_t tile;          // output positions whose columns are in memory at once
  const T* input;        // [N][C][H][W], or [N][H][W][C]
  bool channels_last;    // input and grad_input
  const T* offset;       // [N][G][K][y, x][Ho][Wo]
  const T* mask;         // [N][G][K][Ho][Wo], or null: 1 everywhere
  const T* weight;       // [O][C/groups][K]
  const T* grad_output;  // [N][O][Ho][Wo], or [N][Ho][Wo][O]
  bool grad_output_channels_last;
  T* grad_input;   // as input
  T* grad_offset;  // [per_offset_group][N][G][K][y, x][Ho][Wo]: sums over the channels of a slice
  T* grad_mask;    // [per_offset_group][N][G][K][Ho][Wo], or null
  T* grad_weight;  // [image_ranges][O][C/groups][K]
};

}  // namespace d2_deformable
