// The part that the host code uses.
#pragma once

#include <c10/core/ScalarType.h>

#include "cublas_v2.h"

namespace at::cuda {
inline cudaDataType ScalarTypeToCudaDataType(c10::ScalarType type) {
  return type == c10::kDouble  ? CUDA_R_64F
         : type == c10::kFloat ? CUDA_R_32F
         : type == c10::kHalf  ? CUDA_R_16F
                               : CUDA_R_16BF;
}
}  // namespace at::cuda
