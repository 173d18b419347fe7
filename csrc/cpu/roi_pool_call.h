// Arguments of the CPU kernels of the RoI operators (kernels/*_roi_*_cpu_kernel.h): what a call
// reads and writes. Free of ATen, as the kernels are.
//
// Work is cut into items, one for each image, each bin group (bins that read the same channels) and
// each slice of the bin group's channels. An item owns its slice of its image. It copies the slice
// once, channels-last, into memory that stays in the cache, and serves all RoIs of the image from
// it. In backward it alone adds to the slice's gradient, RoI by RoI. The cut depends on the shapes
// alone, so results are the same for any number of threads.
#pragma once

#include <cstdint>

#include "../geometry/deform_roi_pool_geometry.h"
#include "../geometry/ps_roi_pool_geometry.h"

namespace d2_deformable {

// The channels of a bin group, cut into slices. A slice holds whole classes (channels that share
// offsets), or a class takes several slices. Slices are multiples of 64 bytes where classes allow.
struct RoiChannelSlices {
  int64_t channels, class_channels;  // of a bin group, of a class
  int64_t size;                      // channels per slice; the last slice of a class may have fewer
  int64_t per_class;                 // slices per class; 1 if a slice holds whole classes

  RoiChannelSlices() = default;
  D2_HOST_DEVICE RoiChannelSlices(int64_t channels, int64_t class_channels, int64_t most,
                                  int64_t lanes)
      : channels(channels), class_channels(class_channels) {
    if (class_channels > most) {
      size = ceil_div(ceil_div(class_channels, ceil_div(class_channels, most)), lanes) * lanes;
      per_class = ceil_div(class_channels, size);
    } else {
      const int64_t classes = channels / class_channels, most_classes = most / class_channels;
      size = ceil_div(classes, ceil_div(classes, most_classes)) * class_channels;
      per_class = 1;
    }
  }
  D2_HOST_DEVICE int64_t count() const {
    return per_class == 1 ? ceil_div(channels, size) : channels / class_channels * per_class;
  }
  D2_HOST_DEVICE int64_t begin(int64_t slice) const {
    return per_class == 1 ? slice * size
                          : slice / per_class * class_channels + slice % per_class * size;
  }
  D2_HOST_DEVICE int64_t end(int64_t slice) const {
    const int64_t end = begin(slice) + size;
    const int64_t last = per_class == 1 ? channels : (slice / per_class + 1) * class_channels;
    return end < last ? end : last;
  }
  D2_HOST_DEVICE static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
};

// One pixel along an axis: its place in the map, its weight and its slope (geometry/bin_axis.h).
template <typename T>
struct AxisPixel {
  int64_t offset;
  T weight, slope;
};

// The pixels that a bin reads along an axis.
template <typename T>
struct AxisPixels {
  const AxisPixel<T>* pixels;
  int64_t size;  // of `pixels`
  T count;       // what the mean divides by along this axis
};

// Pixels of a page: what is copied at once where bins read only few pixels of a map.
constexpr int64_t kRoiPage = 64;

// Scratch memory of one thread, for one item at a time.
template <typename T>
struct RoiScratch {
  T* map;                  // [H*W][slice]
  T* grad_map;             // [H*W][slice]
  T* rows;                 // [bins][slice]
  AxisPixel<T>* y;         // of one bin
  AxisPixel<T>* x;         // of one bin, or of bins next to each other
  AxisPixels<T>* x_lists;  // in x, one per bin
  bool* copied;            // whether a page of map has been copied
};

template <typename T>
struct RoiPoolCall {
  int64_t images, bin_groups, top_channels, height, width, bins;
  RoiChannelSlices slices;
  const int64_t* order;        // indices of the RoIs, image by image
  const int64_t* image_begin;  // [N + 1], into order
  // Maps are (N, C, H, W) and copied slice by slice. In place: there is one bin group, maps are
  // [N][H][W][C], and nothing is copied.
  bool in_place;
  bool by_pages;  // bins read too few pixels to copy whole maps
  const T* input;
  T* grad_input;
  // Results are [R][Ctop][bins]. As rows: [R][bins][Ctop].
  bool as_rows;
  T* output;
  const T* grad_output;

  int64_t slice_stride;  // from pixel to pixel in scratch memory
  int64_t most_pixels;   // of a bin along an axis

  D2_HOST_DEVICE int64_t items() const { return images * bin_groups * slices.count(); }
  D2_HOST_DEVICE int64_t pixels() const { return height * width; }
};

template <typename T>
struct DeformRoiPoolCall : RoiPoolCall<T> {
  DeformRoiPoolSizes sizes;
  const DeformRoiBins<T>* roi_bins;  // [R]
  const T* offset;                   // [R][classes][y, x][parts_h][parts_w], or null
  bool keep_x_lists;                 // of all bins of a row, which the next rows use as well
  // [R][classes][slices per class][y, x][bins], or null: the gradient with respect to each bin's
  // offset, summed over the channels of one slice.
  T* grad_bin_offset;
};

// deform_roi_pool where every channel is a class: an item is one plane. RoIs are in the order of
// images and are the fastest dimension of every array, with rows `stride` numbers apart.
template <typename T>
struct DeformRoiPlanesCall {
  DeformRoiPoolSizes sizes;
  int64_t stride;
  const int64_t* image_begin;               // [N + 1]
  const T *y, *x, *box_height, *box_width;  // [R] each, as in DeformRoiBins
  const T *bin_height, *bin_width, *step_y, *step_x;
  const T* offset;       // [classes][y, x][parts_h][parts_w][R]
  const T* input;        // (N, C, H, W)
  T* grad_input;         // (N, C, H, W)
  T* output;             // [classes][bins][R]
  const T* grad_output;  // [classes][bins][R]
  T* grad_bin_offset;    // [classes][y, x][bins][R]: with respect to each bin's offset
};

template <typename T>
struct PsRoiPoolCall : RoiPoolCall<T> {
  PsRoiPoolSizes sizes;
  const T* rois;  // [R][5]
};

}  // namespace d2_deformable
