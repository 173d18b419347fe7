#include "../host/ps_roi_pool.h"

#include <torch/library.h>

#include "device.h"

namespace d2_deformable {

TORCH_LIBRARY_IMPL(d2_deformable, CUDA, m) {
  m.impl("ps_roi_pool", TORCH_FN(ps_roi_pool<Cuda>));
  m.impl("ps_roi_pool_backward", TORCH_FN(ps_roi_pool_backward<Cuda>));
}

}  // namespace d2_deformable
