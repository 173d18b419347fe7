// Conversions between tensors and the layouts that kernels use, for every back end.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace d2_deformable {

// Results have the memory format of the input.
inline at::MemoryFormat memory_format(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}
inline at::MemoryFormat memory_format(const at::Tensor& input) {
  return memory_format(input.is_contiguous(at::MemoryFormat::ChannelsLast) &&
                       !input.is_contiguous());
}

// Coordinates or factors, contiguous and of the given type; undefined where there are none.
inline at::Tensor to_coordinates(const std::optional<at::Tensor>& tensor, at::ScalarType type) {
  return tensor ? tensor->to(type).contiguous() : at::Tensor();
}

template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

}  // namespace d2_deformable
