#include "../kernels/deform_roi_pool.h"
#include "launch.cuh"

namespace d2_deformable {

D2_INSTANTIATE_LAUNCH(DeformRoiPoolKernel)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolInputGradientKernel, AtomicAdd)
D2_INSTANTIATE_LAUNCH(DeformRoiPoolOffsetGradientKernel)

}  // namespace d2_deformable
