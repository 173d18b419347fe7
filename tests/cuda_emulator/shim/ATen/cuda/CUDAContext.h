// As much as the host code uses.
#pragma once

namespace at::cuda {
struct DeviceProperties {
  int major, multiProcessorCount;
  size_t sharedMemPerBlockOptin;
};
inline const DeviceProperties* getCurrentDeviceProperties() {
  static const DeviceProperties properties{9, 132, 227 << 10};
  return &properties;
}
}  // namespace at::cuda
