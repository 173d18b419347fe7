// As much as the host code uses.
#pragma once

namespace at::cuda {
struct DeviceProperties {
  int major;
};
inline const DeviceProperties* getCurrentDeviceProperties() {
  static const DeviceProperties properties{9};
  return &properties;
}
}  // namespace at::cuda
