#include "kernels/deform_roi_pool_cuda_kernel.h"

#include "kernels/deform_roi_pool_input_gradient_cuda_kernel.h"
#include "kernels/deform_roi_pool_offset_gradient_cuda_kernel.h"
#include "launch.cuh"

namespace d2_deformable {

D2_INSTANTIATE_LAUNCH_OF(RoiListsKernel<double, DeformRoiBins<double>, DeformRoiPoolSizes>)
D2_INSTANTIATE_LAUNCH_OF(RoiListsKernel<float, DeformRoiBins<float>, DeformRoiPoolSizes>)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolKernel)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolInputGradientKernel, false)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolInputGradientKernel, true)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolShiftGradientKernel)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolOffsetGradientKernel)

}  // namespace d2_deformable
