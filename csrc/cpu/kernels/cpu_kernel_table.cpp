// The table of CPU kernels of one instruction set, D2_CPU_TARGET.
#include "../cpu_kernels.h"

#include "deform_conv2d_backward_cpu_kernel.h"
#include "deform_conv2d_forward_cpu_kernel.h"
#include "deform_roi_planes_cpu_kernel.h"
#include "deform_roi_pool_cpu_kernel.h"
#include "ps_roi_pool_cpu_kernel.h"
#include "transpose.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

template <typename T>
constexpr CpuKernels<T> all_kernels() {
  CpuKernels<T> kernels{};
  kernels.transpose = transpose<T>;
  kernels.weight_panel_count = weight_panel_count<T>;
  kernels.weight_panel_size = weight_panel_size<T>;
  kernels.write_weight_panel = write_weight_panel<T>;
  kernels.deform_conv2d_tile = deform_conv2d_tile<T>;
  kernels.deform_conv2d_backward_scratch = deform_conv2d_backward_scratch<T>;
  kernels.deform_conv2d_backward_slice = deform_conv2d_backward_slice<T>;
  kernels.deform_roi_pool = deform_roi_pool<T>;
  kernels.deform_roi_pool_backward = deform_roi_pool_backward<T>;
  kernels.deform_roi_planes = deform_roi_planes<T>;
  kernels.deform_roi_planes_backward = deform_roi_planes_backward<T>;
  kernels.ps_roi_pool = ps_roi_pool<T>;
  kernels.ps_roi_pool_backward = ps_roi_pool_backward<T>;
  return kernels;
}

extern const CpuKernels<float> float_kernels;
extern const CpuKernels<double> double_kernels;
constexpr CpuKernels<float> float_kernels = all_kernels<float>();
constexpr CpuKernels<double> double_kernels = all_kernels<double>();

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
