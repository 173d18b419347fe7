// Schemas of all operators of torch.ops.d2_deformable. No argument has a default value here: the
// public functions have them, and everything below takes every argument. Each back end registers
// its kernels in its own files, cpu/ and cuda/. Fake kernels and autograd formulas are next to the
// public functions, in d2_deformable/ops/<op>.py.
//
// Shapes: N images, C channels, H W map size, R RoIs, K = kernel_h * kernel_w taps, G offset
// groups. Order: height before width and y before x; RoIs (image index, x0, y0, x1, y1) in input
// pixels. Types: float64, float32, float16 or bfloat16; with a half-precision input, offset, mask
// and rois may be float32. Results and the input's gradient have the memory format of the input.
#include <torch/headeronly/version.h>
#include <torch/library.h>

// d2_deformable/utils/library.py finds this text in the file, even if the library does not load.
extern "C" __attribute__((used, visibility("default"))) const char d2_deformable_torch[] =
    "d2_deformable built with torch " TORCH_VERSION;

TORCH_LIBRARY(d2_deformable, m) {
  // input (N, C, H, W), offset (N, G*K*2, Ho, Wo), weight (O, C/groups, kernel_h, kernel_w),
  // bias (O), mask (N, G*K, Ho, Wo), border "zero" or "legacy" -> (N, O, Ho, Wo)
  m.def(
      "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, int[2] stride, "
      "int[2] padding, int[2] dilation, Tensor? mask, str border) -> Tensor");
  // -> gradients of input, offset, weight and mask (an empty tensor without a mask)
  m.def(
      "deform_conv2d_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, "
      "Tensor? mask, int[2] stride, int[2] padding, int[2] dilation, str border) "
      "-> (Tensor, Tensor, Tensor, Tensor)");

  // input (N, C, H, W), rois (R, 5), offset (R, 2*classes, part_h, part_w),
  // output_size (bins_h, bins_w) -> (R, C / group_size^2, bins_h, bins_w)
  m.def(
      "deform_roi_pool(Tensor input, Tensor rois, Tensor? offset, *, int[2] output_size, "
      "float spatial_scale, int group_size, int samples_per_part, float gamma, "
      "bool round_rois) -> Tensor");
  // -> gradients of input and offset (an empty tensor without an offset)
  m.def(
      "deform_roi_pool_backward(Tensor grad_output, Tensor input, Tensor rois, Tensor? offset, *, "
      "int[2] output_size, float spatial_scale, int group_size, int samples_per_part, "
      "float gamma, bool round_rois) -> (Tensor, Tensor)");

  // input (N, C, H, W), rois (R, 5), offset (R, 2, bins_h, bins_w), output_size (bins_h, bins_w)
  // -> (R, C, bins_h, bins_w)
  m.def(
      "deform_roi_align(Tensor input, Tensor rois, Tensor? offset, *, int[2] output_size, "
      "float spatial_scale, int sampling_ratio, float gamma) -> Tensor");
  // -> gradients of input and offset (an empty tensor without an offset)
  m.def(
      "deform_roi_align_backward(Tensor grad_output, Tensor input, Tensor rois, Tensor? offset, *, "
      "int[2] output_size, float spatial_scale, int sampling_ratio, float gamma) "
      "-> (Tensor, Tensor)");

  // input (N, C, H, W), rois (R, 5), output_size (bins_h, bins_w)
  // -> (R, C / (bins_h*bins_w), bins_h, bins_w)
  m.def(
      "ps_roi_pool(Tensor input, Tensor rois, *, int[2] output_size, float spatial_scale, "
      "bool round_rois) -> Tensor");
  // input_size (N, C, H, W) -> gradient of input
  m.def(
      "ps_roi_pool_backward(Tensor grad_output, Tensor rois, *, SymInt[] input_size, "
      "int[2] output_size, float spatial_scale, bool round_rois, bool channels_last) -> Tensor");
}
