// Argument checks of every operator. They protect memory, whoever the caller is. d2_deformable/ops/
// makes the same checks first, with longer messages for users.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace d2_deformable {

inline void check_dims(const char* op, const char* name, const at::Tensor& tensor, int64_t dims) {
  TORCH_CHECK(tensor.dim() == dims, op, ": ", name, " must have ", dims, " dimensions, got shape ",
              tensor.sizes());
}

inline void check_shape(const char* op, const char* name, const at::Tensor& tensor,
                        at::IntArrayRef expected) {
  TORCH_CHECK(tensor.sizes() == expected, op, ": ", name, " must have shape ", expected, ", got ",
              tensor.sizes());
}

inline void check_device(const char* op, const char* name, const at::Tensor& tensor,
                         const at::Tensor& input) {
  TORCH_CHECK(tensor.device() == input.device(), op, ": ", name, " is on ", tensor.device(),
              " but input on ", input.device());
}

inline void check_like(const char* op, const char* name, const at::Tensor& tensor,
                       const at::Tensor& input) {
  check_device(op, name, tensor, input);
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), op, ": ", name, " is ",
              tensor.scalar_type(), " but input ", input.scalar_type());
}

// With a half-precision input, coordinates and factors (RoIs, offsets, masks) may be float32, and
// should be: in an image 1,000 pixels wide, bfloat16 represents only every fourth pixel.
inline void check_coordinates(const char* op, const char* name, const at::Tensor& tensor,
                              const at::Tensor& input) {
  check_device(op, name, tensor, input);
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type() ||
                  tensor.scalar_type() == at::toOpMathType(input.scalar_type()),
              op, ": ", name, " is ", tensor.scalar_type(), " but input ", input.scalar_type());
}

// The most elements of a tensor, or of a tensor without elements if its empty dimensions had
// size 1. No memory holds as many. It keeps what is computed from sizes within 64 bits, since sizes
// given as numbers, of a tensor without elements, or of one whose elements share memory may be any.
constexpr int64_t kMostElements = int64_t(1) << 48;

inline void check_elements(const char* op, const char* name, at::IntArrayRef sizes) {
  int64_t elements = 1;
  for (const int64_t size : sizes) {
    const bool fits = size >= 0 && size <= kMostElements / elements;
    TORCH_CHECK(fits, op, ": ", name, " ", sizes, " has a negative or too large size");
    elements *= size > 0 ? size : 1;
  }
}

// geometry/sampling.h requires maps that are not empty and whose sides float32 represents exactly.
inline void check_map_sizes(const char* op, at::IntArrayRef sizes) {
  TORCH_CHECK(sizes.size() == 4, op, ": input must be (N, C, H, W), got shape ", sizes);
  TORCH_CHECK(sizes[1] > 0 && sizes[2] > 0 && sizes[3] > 0, op, ": input ", sizes,
              " has an empty C, H or W");
  TORCH_CHECK(sizes[2] < (1 << 24) && sizes[3] < (1 << 24), op, ": input ", sizes,
              " has a side of 2^24 or more");
  TORCH_CHECK(sizes[0] < (int64_t(1) << 31), op, ": input ", sizes,
              " has a negative or too large size");
  check_elements(op, "input", sizes);
}

// Two numbers, each at least `least`. The upper bound keeps their products within 64 bits.
inline void check_numbers(const char* op, const char* name, at::IntArrayRef values, int64_t least) {
  TORCH_CHECK(values.size() == 2, op, ": ", name, " takes two numbers, got ", values);
  for (const int64_t value : values) {
    TORCH_CHECK(value >= least && value < (1 << 24), op, ": ", name, " must be at least ", least,
                " and below 2^24, got ", values);
  }
}

// float32 represents image indices up to 2^24, which also bounds the lists of each image's RoIs.
inline void check_rois(const char* op, const at::Tensor& rois, int64_t images,
                       at::IntArrayRef output_size) {
  TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, op, ": rois must be (R, 5), got shape ",
              rois.sizes());
  TORCH_CHECK(images <= (1 << 24), op, ": input holds ", images,
              " images, must be at most 2^24, so that RoIs can name them");
  check_numbers(op, "output_size", output_size, 1);
}

}  // namespace d2_deformable
