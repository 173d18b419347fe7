#include "kernels/deform_roi_pool_cuda_kernel.h"

#include "kernels/deform_roi_pool_input_gradient_cuda_kernel.h"
#include "kernels/deform_roi_pool_offset_gradient_cuda_kernel.h"
#include "launch.cuh"

namespace d2_deformable {

D2_INSTANTIATE_LAUNCH_OF(RoiListsKernel<double, DeformRoiBins<double>, DeformRoiPoolSizes>)
D2_INSTANTIATE_LAUNCH_OF(RoiListsKernel<float, DeformRoiBins<float>, DeformRoiPoolSizes>)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolKernel, RoiSampling::kPool)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolKernel, RoiSampling::kAlign)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolInputGradientKernel, RoiSampling::kPool, false)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolInputGradientKernel, RoiSampling::kPool, true)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolInputGradientKernel, RoiSampling::kAlign, false)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolInputGradientKernel, RoiSampling::kAlign, true)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolShiftGradientKernel, RoiSampling::kPool)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolShiftGradientKernel, RoiSampling::kAlign)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolOffsetGradientKernel)

}  // namespace d2_deformable
