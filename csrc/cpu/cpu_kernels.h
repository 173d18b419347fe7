// The functions of kernels/ that the CPU operators call, one table per instruction set. Free of
// ATen, as the kernels are.
#pragma once

#include <cstdint>

#include "deform_conv2d_call.h"
#include "roi_pool_call.h"

namespace d2_deformable {

template <typename T>
struct CpuKernels {
  // kernels/transpose.h
  void (*transpose)(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows,
                    int64_t columns);
  // kernels/deform_conv2d_forward_cpu_kernel.h
  int64_t (*weight_panel_count)(const DeformConv2dSizes& sizes);
  int64_t (*weight_panel_size)(const DeformConv2dSizes& sizes);
  void (*write_weight_panel)(const DeformConv2dSizes& sizes, const T* weight, int64_t panel,
                             T* panels);
  void (*deform_conv2d_tile)(const DeformConv2dForward<T>& op, int64_t image, int64_t first,
                             T* scratch);
  // kernels/deform_conv2d_backward_cpu_kernel.h
  int64_t (*deform_conv2d_backward_scratch)(const DeformConv2dBackward<T>& op, int64_t slice);
  void (*deform_conv2d_backward_slice)(const DeformConv2dBackward<T>& op, int64_t slice,
                                       int64_t image_range, T* scratch);

  // kernels/deform_roi_pool_cpu_kernel.h, deform_roi_planes_cpu_kernel.h and
  // ps_roi_pool_cpu_kernel.h: one item
  void (*deform_roi_pool)(const DeformRoiPoolCall<T>&, int64_t item, const RoiScratch<T>&);
  void (*deform_roi_pool_backward)(const DeformRoiPoolCall<T>&, int64_t item, const RoiScratch<T>&);
  void (*deform_roi_planes)(const DeformRoiPlanesCall<T>&, int64_t item, const RoiScratch<T>&);
  void (*deform_roi_planes_backward)(const DeformRoiPlanesCall<T>&, int64_t item,
                                     const RoiScratch<T>&);
  void (*ps_roi_pool)(const PsRoiPoolCall<T>&, int64_t item, const RoiScratch<T>&);
  void (*ps_roi_pool_backward)(const PsRoiPoolCall<T>&, int64_t item, const RoiScratch<T>&);
};

// The table for the best instruction set that the machine has and ATEN_CPU_CAPABILITY (default,
// avx2 or avx512) allows, as everywhere in PyTorch. T is float or double.
template <typename T>
const CpuKernels<T>& cpu_kernels();

}  // namespace d2_deformable
