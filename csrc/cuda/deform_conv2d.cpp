#include "../host/deform_conv2d.h"

#include <torch/library.h>

#include "device.h"

namespace d2_deformable {

TORCH_LIBRARY_IMPL(d2_deformable, CUDA, m) {
  m.impl("deform_conv2d", TORCH_FN(deform_conv2d<Cuda>));
  m.impl("deform_conv2d_backward", TORCH_FN(deform_conv2d_backward<Cuda>));
}

}  // namespace d2_deformable
