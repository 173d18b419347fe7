#include "../host/deform_roi_pool.h"

#include <torch/library.h>

#include "device.h"

namespace d2_deformable {

TORCH_LIBRARY_IMPL(d2_deformable, CPU, m) {
  m.impl("deform_roi_pool", TORCH_FN(deform_roi_pool<Cpu>));
  m.impl("deform_roi_pool_backward", TORCH_FN(deform_roi_pool_backward<Cpu>));
}

}  // namespace d2_deformable
