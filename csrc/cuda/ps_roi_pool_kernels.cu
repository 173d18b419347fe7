#include "../kernels/ps_roi_pool.h"
#include "launch.cuh"

namespace d2_deformable {

D2_INSTANTIATE_LAUNCH(PsRoiPoolKernel)
D2_INSTANTIATE_LAUNCH(PsRoiPoolInputGradientKernel, AtomicAdd)

}  // namespace d2_deformable
