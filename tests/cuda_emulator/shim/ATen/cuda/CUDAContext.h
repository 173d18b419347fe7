// The part that the host code uses.
#pragma once

#include <c10/util/Exception.h>

#include "cublas_v2.h"

#define TORCH_CUDABLAS_CHECK(status) TORCH_CHECK((status) == CUBLAS_STATUS_SUCCESS)

namespace at::cuda {
struct DeviceProperties {
  int major, multiProcessorCount;
  size_t sharedMemPerBlockOptin;
};
inline const DeviceProperties* getCurrentDeviceProperties() {
  static const DeviceProperties properties{9, 132, 227 << 10};
  return &properties;
}
cublasHandle_t getCurrentCUDABlasHandle();
}  // namespace at::cuda
