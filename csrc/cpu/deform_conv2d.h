// What the kernels of deform_conv2d read and write. Free of ATen, as the kernels are.
// Letters in layouts: N images, C channels, O output channels, K taps, G offset groups.
#pragma once

#include <cstdint>

#include "../geometry/deform_conv2d.h"

namespace d2_deformable {

// Panels of a group's outputs in the packed weight.
template <typename T>
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
  const T* weight;  // packed: [groups][panels][K][C/groups][panel]
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

}  // namespace d2_deformable
