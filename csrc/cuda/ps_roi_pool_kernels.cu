#include "kernels/ps_roi_pool_cuda_kernel.h"

#include "launch.cuh"

namespace d2_deformable {

D2_INSTANTIATE_LAUNCH_OF(RoiListsKernel<double, PsRoiBins<double>, PsRoiPoolSizes>)
D2_INSTANTIATE_LAUNCH_OF(RoiListsKernel<float, PsRoiBins<float>, PsRoiPoolSizes>)
D2_INSTANTIATE_LAUNCH(PsRoiPoolKernel)
D2_INSTANTIATE_LAUNCH(PsRoiPoolInputGradientKernel, false)
D2_INSTANTIATE_LAUNCH(PsRoiPoolInputGradientKernel, true)

}  // namespace d2_deformable
