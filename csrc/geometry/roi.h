// What the RoI operators share: the box of a RoI on the map, and the bins of a part.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>

#include "sampling.h"

namespace d2_deformable {

// Along one axis, the bins of one part: bin b belongs to part b * parts / bins, rounded down.
// Bin groups (deform_roi_pool's group_size) are found in the same way.
struct BinRange {
  int64_t begin, end;
  D2_HOST_DEVICE BinRange(int64_t part, int64_t parts, int64_t bins)
      : begin((part * bins + parts - 1) / parts), end(((part + 1) * bins + parts - 1) / parts) {}
};

// False for NaN and for fractions.
template <typename T>
D2_HOST_DEVICE bool is_image_index(T index, int64_t images) {
  return index >= T(0) && index < T(images) && index == T(int64_t(index));
}

// Index of the image that a RoI names. The CPU checks all indices before it runs a kernel. On a GPU
// such a check would synchronise, so there the kernel asserts, as PyTorch's own do for indices.
template <typename T>
D2_HOST_DEVICE int64_t image_of(const T* roi, int64_t images) {
  const bool holds = is_image_index(roi[0], images);
  assert(holds && "a RoI names an image that input does not hold");
  return holds ? int64_t(roi[0]) : 0;
}

// A RoI in map pixels, from rois[R][5] = (image index, x0, y0, x1, y1) in continuous input pixels.
//
// The released operators take the inclusive x2 = x1 - 1 and end at (round(x2) + 1) * scale. Here
// that is round(x1) * scale, halves away from zero. The two differ only for x2 = -0.5, a box that
// ends at the left border. RoIAlign's boxes have no minimum size and may be inverted.
template <typename T>
struct RoiBox {
  int64_t image;
  T y, x, height, width;

  D2_HOST_DEVICE RoiBox(const T* roi, int64_t images, T spatial_scale, T origin, bool round_rois,
                        bool minimum = true)
      : image(image_of(roi, images)) {
    T corner[4];
    for (int k = 0; k < 4; ++k) {
      const T pixel = roi[1 + k];
      corner[k] = (round_rois ? T(round(pixel)) : pixel) * spatial_scale + origin;
    }
    x = corner[0];
    y = corner[1];
    width = corner[2] - corner[0];
    height = corner[3] - corner[1];
    if (!minimum) return;
    width = at_least_a_tenth(width);
    height = at_least_a_tenth(height);
  }

  D2_HOST_DEVICE static T at_least_a_tenth(T side) { return side > T(0.1) ? side : T(0.1); }
};

}  // namespace d2_deformable
