// The table of CPU kernels for one instruction set.
#include "../kernels.h"

#include "deform_conv2d_forward.h"
#include "deform_roi_planes.h"
#include "deform_roi_pool.h"
#include "ps_roi_pool.h"
#include "transpose.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

template <typename T>
constexpr CpuKernels<T> kKernels{
    transpose<T>,         kPanel<T>,
    pack_weight<T>,       deform_conv2d_tile<T>,
    deform_roi_pool<T>,   deform_roi_pool_backward<T>,
    deform_roi_planes<T>, deform_roi_planes_backward<T>,
    ps_roi_pool<T>,       ps_roi_pool_backward<T>,
};

extern const CpuKernels<float> float_kernels;
extern const CpuKernels<double> double_kernels;
const CpuKernels<float> float_kernels = kKernels<float>;
const CpuKernels<double> double_kernels = kKernels<double>;

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
