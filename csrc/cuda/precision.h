// A deformable convolution is a convolution: whether its float32 products may take TF32 is for the
// setting of convolutions to say (torch.backends.cudnn.allow_tf32, cudnn.conv.fp32_precision), as
// for torch.nn.functional.conv2d, and not for that of matrix products, which ATen would ask.
#pragma once

#include <ATen/Context.h>

#include <mutex>

namespace d2_deformable {

// While it lives, float32 products follow the setting of convolutions. ATen has no such argument,
// and at::NoTF32Guard, which is the thread's own, can only forbid TF32, and is not asked where a
// bias is fused. So the setting of matrix products itself is changed, where it differs, and set
// back. It is the whole process's: calls of this operator wait for each other; another thread's
// product that is launched in these microseconds takes the precision of convolutions. (A setting
// inherited from a wider one is set back to the value that it had.)
class ConvolutionPrecision {
 public:
  ConvolutionPrecision() : lock_(mutex()), before_(precision(at::Float32Op::MATMUL)) {
    const bool wanted = precision(at::Float32Op::CONV) == at::Float32Precision::TF32;
    changed_ = wanted != (before_ == at::Float32Precision::TF32);
    if (changed_) set(wanted ? at::Float32Precision::TF32 : at::Float32Precision::IEEE);
  }
  ~ConvolutionPrecision() {
    if (changed_) set(before_);
  }
  ConvolutionPrecision(const ConvolutionPrecision&) = delete;
  ConvolutionPrecision& operator=(const ConvolutionPrecision&) = delete;

 private:
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  static at::Float32Precision precision(at::Float32Op op) {
    return at::globalContext().float32Precision(at::Float32Backend::CUDA, op);
  }
  static void set(at::Float32Precision value) {
    at::globalContext().setFloat32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL, value);
  }

  const std::lock_guard<std::mutex> lock_;
  const at::Float32Precision before_;
  bool changed_;
};

}  // namespace d2_deformable
