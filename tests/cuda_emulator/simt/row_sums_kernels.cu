#include "row_sums_kernels.h"

#include "cuda/launch.cuh"

namespace d2_deformable {

D2_INSTANTIATE_LAUNCH(RowSumsKernel)

}  // namespace d2_deformable
