// What the kernels of deform_conv2d read and write. Free of ATen, as the kernels are.
// Letters in layouts: N images, C channels, O output channels, K taps, G offset groups.
#pragma once

#include <cstdint>

#include "../geometry/deform_conv2d_geometry.h"

namespace d2_deformable {

// Panels of a group's outputs in the packed weight.
D2_HOST_DEVICE int64_t weight_panels(const DeformConv2dSizes& s, int64_t panel) {
  return (s.out_channels / s.groups + panel - 1) / panel;
}

template <typename T>
struct DeformConv2dForward {
  DeformConv2dSizes sizes;
  int64_t tile;     // output positions per call
  int64_t chunk;    // taps whose columns are in memory at one time
  const T* input;   // [N][H][W][C]
  const T* zeros;   // [C]
  const T* offset;  // [N][G][K][y, x][Ho][Wo]
  const T* mask;    // [N][G][K][Ho][Wo], or null: 1 everywhere
  const T* weight;  // packed: [groups][panels][K][C/groups][panel], or [units][K][C/groups][lanes]
  const T* bias;    // [O], or null
  T* output;        // [N][O][Ho][Wo], or [N][Ho][Wo][O]
  bool channels_last;

  // Rows of matrices in scratch memory: apart by other than a power of 2, which would be one set of
  // the cache for all of them.
  D2_HOST_DEVICE int64_t column_row() const { return chunk * sizes.channels + 64 / sizeof(T); }
  D2_HOST_DEVICE int64_t result_row() const { return sizes.out_channels + 64 / sizeof(T); }
  D2_HOST_DEVICE int64_t scratch() const {
    return tile * (column_row() + (channels_last ? 0 : result_row()));
  }
};

// The channels, cut into slices that own their gradients: part of an offset group, or several whole
// ones. Cut by the shape alone, since sums over channels depend on it.
struct ChannelSlices {
  int64_t group_channels;  // of an offset group
  int64_t per_group;       // slices of an offset group
  int64_t groups;          // offset groups of a slice; 1 where per_group > 1
  int64_t width;           // channels of each of its groups in a slice
  int64_t count;
};

template <typename T>
struct DeformConv2dBackward {
  DeformConv2dSizes sizes;
  ChannelSlices slices;
  int64_t image_parts;   // of the images, each with a grad_weight of its own
  int64_t tile;          // output positions whose columns are in memory at one time
  const T* input;        // [N][C][H][W], or [N][H][W][C]
  bool channels_last;    // input and grad_input
  const T* offset;       // [N][G][K][y, x][Ho][Wo]
  const T* mask;         // [N][G][K][Ho][Wo], or null: 1 everywhere
  const T* weight;       // [O][C/groups][K]
  const T* grad_output;  // [N][O][Ho][Wo], or [N][Ho][Wo][O]
  bool grad_output_channels_last;
  T* grad_input;   // as input
  T* grad_offset;  // [per_group][N][G][K][y, x][Ho][Wo]: sums over a slice's channels
  T* grad_mask;    // [per_group][N][G][K][Ho][Wo], or null
  T* grad_weight;  // [image_parts][O][C/groups][K]
};

}  // namespace d2_deformable
