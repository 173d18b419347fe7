#include "../kernels/deform_conv2d.h"
#include "launch.cuh"

namespace d2_deformable {

D2_INSTANTIATE_LAUNCH(DeformConv2dColumnsKernel)
D2_INSTANTIATE_LAUNCH(DeformConv2dGradientsKernel, AtomicAdd)

}  // namespace d2_deformable
