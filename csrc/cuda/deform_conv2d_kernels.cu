#include "kernels/deform_conv2d_cuda_kernel.h"

#include "launch.cuh"

namespace d2_deformable {

D2_INSTANTIATE_LAUNCH(DeformConv2dColumnsKernel, true)
D2_INSTANTIATE_LAUNCH(DeformConv2dColumnsKernel, false)
D2_INSTANTIATE_LAUNCH(DeformConv2dGradientsKernel, true)
D2_INSTANTIATE_LAUNCH(DeformConv2dGradientsKernel, false)
D2_INSTANTIATE_LAUNCH(DeformConv2dOwnedInputGradientKernel)

}  // namespace d2_deformable
