// Products of matrices as a convolution wants them, in batches: one of each weight group. cuBLAS is
// called with an explicit compute type, and no setting of PyTorch is changed: ATen's products would
// follow those of matrix products.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDADataType.h>

namespace d2_deformable {

// Sums are at least float32. A deformable convolution is a convolution: whether its float32
// products may take TF32 is for the setting of convolutions to say
// (torch.backends.cudnn.allow_tf32, cudnn.conv.fp32_precision), as for torch.nn.functional.conv2d.
inline cublasComputeType_t compute_type(at::ScalarType type) {
  if (type == at::kDouble) return CUBLAS_COMPUTE_64F;
  const bool tf32 = type == at::kFloat && at::globalContext().float32Precision(
                                              at::Float32Backend::CUDA, at::Float32Op::CONV) ==
                                              at::Float32Precision::TF32;
  return tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

// The current stream's handle, which is this thread's own. While it lives, the compute type alone
// decides: ATen leaves the precision of matrix products in the handle's math mode, and partial sums
// are not rounded to half precision.
class CublasHandle {
 public:
  CublasHandle() {
    TORCH_CUDABLAS_CHECK(cublasGetMathMode(handle_, &before_));
    TORCH_CUDABLAS_CHECK(
        cublasSetMathMode(handle_, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
  }
  ~CublasHandle() { cublasSetMathMode(handle_, before_); }
  CublasHandle(const CublasHandle&) = delete;
  CublasHandle& operator=(const CublasHandle&) = delete;

  operator cublasHandle_t() const { return handle_; }

 private:
  const cublasHandle_t handle_ = at::cuda::getCurrentCUDABlasHandle();
  cublasMath_t before_;
};

// A batch (groups, rows, columns) for cuBLAS, which reads down columns: rows of consecutive
// elements are its transpose (CUBLAS_OP_N: as stored), columns of consecutive elements the matrix
// itself.
struct CublasMatrices {
  explicit CublasMatrices(const at::Tensor& t)
      : stored_as_rows(are_lines(t, 1, 2)),
        type(at::cuda::ScalarTypeToCudaDataType(t.scalar_type())) {
    TORCH_INTERNAL_ASSERT(stored_as_rows || are_lines(t, 2, 1), "matrices ", t.sizes(),
                          " of strides ", t.strides());
    const int line = stored_as_rows ? 1 : 2, element = 3 - line;
    leading = t.size(line) == 1 ? t.size(element) : t.stride(line);
    batch_stride = t.stride(0);
  }
  cublasOperation_t operation() const { return stored_as_rows ? CUBLAS_OP_N : CUBLAS_OP_T; }

  bool stored_as_rows;
  cudaDataType type;
  int64_t leading, batch_stride;

 private:
  // Whether dimension `element` runs through consecutive elements of lines that do not overlap. The
  // stride of a dimension of size 1 may be anything.
  static bool are_lines(const at::Tensor& t, int line, int element) {
    return (t.size(element) == 1 || t.stride(element) == 1) &&
           (t.size(line) == 1 || t.stride(line) >= t.size(element));
  }
};

// out = a @ b, or out += a @ b; out (groups, M, N) in rows, a (groups, M, K), b (groups, K, N). Of
// half-precision matrices out may be float32. To cuBLAS this is the transpose: b^T @ a^T.
inline void product_out(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
                        bool add = false) {
  if (out.numel() == 0) return;
  const CublasMatrices to(out), left(a), right(b);
  TORCH_INTERNAL_ASSERT(to.stored_as_rows && a.size(2) == b.size(1) && a.size(2) > 0);
  const cublasComputeType_t compute = compute_type(a.scalar_type());
  const double in_double[] = {0, 1};
  const float in_float[] = {0, 1};
  const auto scalar = [&](bool one) -> const void* {  // of the type that sums have
    if (compute == CUBLAS_COMPUTE_64F) return &in_double[one];
    return &in_float[one];
  };
  const CublasHandle handle;
  TORCH_CUDABLAS_CHECK(cublasGemmStridedBatchedEx_64(
      handle, right.operation(), left.operation(), out.size(2), out.size(1), a.size(2),
      scalar(true), b.const_data_ptr(), right.type, right.leading, right.batch_stride,
      a.const_data_ptr(), left.type, left.leading, left.batch_stride, scalar(add),
      out.mutable_data_ptr(), to.type, to.leading, to.batch_stride, out.size(0), compute,
      CUBLAS_GEMM_DEFAULT));
}

}  // namespace d2_deformable
