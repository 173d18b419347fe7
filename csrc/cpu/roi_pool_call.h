// What the host says to the kernels of the RoI poolings
// (cpu/kernels/*_cpu_kernel.h). Free of ATen.
//
// Work is cut into items, one for each image, group (of bins that read the same channels) and block
// of the group's channels. An item owns its channels of its image: it reads them once, into a
// channels-last copy that stays in the cache, for all RoIs of the image; in the backward pass it
// alone adds to their gradient, RoI by RoI. How work is cut follows from the shapes alone, so that
// results are the same for any number of threads.
#pragma once

#include <cstdint>

#include "../geometry/deform_roi_pool_geometry.h"
#include "../geometry/ps_roi_pool_geometry.h"

namespace d2_deformable {

// The channels of a group in blocks: whole classes (channels that share offsets) in each, or
// several blocks for each class. Blocks are multiples of 64 bytes where classes allow it.
struct RoiChannelBlocks {
  int64_t channels, unit;  // of a group, of a class
  int64_t size;            // channels per block; the last one of a class may be shorter
  int64_t per_unit;        // blocks per class; 1 if a block holds whole classes

  RoiChannelBlocks() = default;
  D2_HOST_DEVICE RoiChannelBlocks(int64_t channels, int64_t unit, int64_t most, int64_t lanes)
      : channels(channels), unit(unit) {
    if (unit > most) {
      size = ceil_div(ceil_div(unit, ceil_div(unit, most)), lanes) * lanes;
      per_unit = ceil_div(unit, size);
    } else {
      const int64_t units = channels / unit, most_units = most / unit;
      size = ceil_div(units, ceil_div(units, most_units)) * unit;
      per_unit = 1;
    }
  }
  D2_HOST_DEVICE int64_t count() const {
    return per_unit == 1 ? ceil_div(channels, size) : channels / unit * per_unit;
  }
  D2_HOST_DEVICE int64_t begin(int64_t block) const {
    return per_unit == 1 ? block * size : block / per_unit * unit + block % per_unit * size;
  }
  D2_HOST_DEVICE int64_t end(int64_t block) const {
    const int64_t end = begin(block) + size;
    const int64_t last = per_unit == 1 ? channels : (block / per_unit + 1) * unit;
    return end < last ? end : last;
  }
  D2_HOST_DEVICE static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
};

// A pixel's place along an axis, in numbers, its weight and its slope: geometry/bin_axis.h.
template <typename T>
struct RoiTap {
  int64_t offset;
  T weight, slope;
};

// What a bin reads along an axis.
template <typename T>
struct RoiTaps {
  const RoiTap<T>* taps;
  int64_t size;     // of the list
  int64_t samples;  // that count
};

// Pixels that are copied at a time where few of a map are read.
constexpr int64_t kRoiTile = 64;

// Memory of one thread, for one item at a time.
template <typename T>
struct RoiScratch {
  T* map;               // [H*W][block]
  T* grad_map;          // [H*W][block]
  T* rows;              // [bins][block]
  RoiTap<T>* y;         // of one bin
  RoiTap<T>* x;         // of each column of bins
  RoiTaps<T>* columns;  // lists in x
  bool* copied;         // tiles of map
};

template <typename T>
struct RoiPoolCall {
  int64_t images, groups, top_channels, height, width, bins;
  RoiChannelBlocks blocks;
  const int64_t* order;        // RoIs, image by image
  const int64_t* image_begin;  // [N + 1], into order
  // Maps are (N, C, H, W); in place: [N][H][W][C], in one group, of which no block is copied.
  bool in_place;
  bool by_tiles;  // bins read too little for copies of whole maps
  const T* input;
  T* grad_input;
  // Results are [R][Ctop][bins]; as rows: [R][bins][Ctop].
  bool as_rows;
  T* output;
  const T* grad_output;

  int64_t block_stride;  // of a block's channels in the scratch
  int64_t most_taps;     // of a bin along an axis

  D2_HOST_DEVICE int64_t items() const { return images * groups * blocks.count(); }
  D2_HOST_DEVICE int64_t pixels() const { return height * width; }
};

template <typename T>
struct DeformRoiPoolCall : RoiPoolCall<T> {
  DeformRoiPoolSizes sizes;
  const DeformRoiGrid<T>* grids;  // [R]
  const T* offset;                // [R][classes][y, x][parts_h][parts_w], or null
  // [R][classes][blocks per class][y, x][bins], or null: each block's share of the gradient of the
  // shift of each bin, in units of the offset.
  T* grad_shift;
};

// deform_roi_pool with a class for each channel: an item is one plane of one image. RoIs stand in
// the order of images, and side by side in memory, `stride` numbers per row.
template <typename T>
struct DeformRoiPlanesCall {
  DeformRoiPoolSizes sizes;
  int64_t stride;
  const int64_t* image_begin;               // [N + 1]
  const T *y, *x, *box_height, *box_width;  // [R] each, as in DeformRoiGrid
  const T *bin_height, *bin_width, *step_y, *step_x;
  const T* offset;       // [classes][y, x][parts_h][parts_w][R]
  const T* input;        // (N, C, H, W)
  T* grad_input;         // (N, C, H, W)
  T* output;             // [classes][bins][R]
  const T* grad_output;  // [classes][bins][R]
  T* grad_shift;         // [classes][y, x][bins][R]: gradient of each bin's shift
};

template <typename T>
struct PsRoiPoolCall : RoiPoolCall<T> {
  PsRoiPoolSizes sizes;
  const T* rois;  // [R][5]
};

}  // namespace d2_deformable
