// Matrix multiply (GEMM) by cuBLAS, in a batch with one matrix per weight group. cuBLAS is called
// with an explicit compute type, because ATen's matrix multiplies would follow the settings of
// matmul, not those of convolutions. No setting of PyTorch is changed.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDADataType.h>

namespace d2_deformable {

// Sums are at least float32. A deformable convolution is a convolution, so the settings of
// convolutions (torch.backends.cudnn.allow_tf32, cudnn.conv.fp32_precision) decide whether float32
// inputs may be multiplied in TF32, as for torch.nn.functional.conv2d.
inline cublasComputeType_t compute_type(at::ScalarType type) {
  if (type == at::kDouble) return CUBLAS_COMPUTE_64F;
  const bool tf32 = type == at::kFloat && at::globalContext().float32Precision(
                                              at::Float32Backend::CUDA, at::Float32Op::CONV) ==
                                              at::Float32Precision::TF32;
  return tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

// The handle of the current stream, which belongs to this thread. ATen leaves the precision of
// matmul in the handle's math mode. While this object lives, the mode is one in which the compute
// type alone decides and partial sums are not rounded to half precision.
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

// A batch of matrices (groups, rows, columns) for cuBLAS, which is column-major and sees everything
// transposed. A matrix whose rows are consecutive in memory is to be used as stored (CUBLAS_OP_N).
// One whose columns are consecutive is to be transposed (CUBLAS_OP_T).
struct CublasMatrices {
  explicit CublasMatrices(const at::Tensor& t)
      : stored_as_rows(is_consecutive(t, 1, 2)),
        type(at::cuda::ScalarTypeToCudaDataType(t.scalar_type())) {
    TORCH_INTERNAL_ASSERT(stored_as_rows || is_consecutive(t, 2, 1), "matrices ", t.sizes(),
                          " of strides ", t.strides());
    const int outer = stored_as_rows ? 1 : 2, inner = 3 - outer;
    leading = t.size(outer) == 1 ? t.size(inner) : t.stride(outer);
    batch_stride = t.stride(0);
  }
  cublasOperation_t operation() const { return stored_as_rows ? CUBLAS_OP_N : CUBLAS_OP_T; }

  bool stored_as_rows;
  cudaDataType type;
  int64_t leading, batch_stride;

 private:
  // Whether dimension `inner` is consecutive in memory and runs along it do not overlap. The
  // stride of a dimension of size 1 may be anything.
  static bool is_consecutive(const at::Tensor& t, int outer, int inner) {
    return (t.size(inner) == 1 || t.stride(inner) == 1) &&
           (t.size(outer) == 1 || t.stride(outer) >= t.size(inner));
  }
};

// out = a @ b, or out += a @ b if `add`. out (groups, M, N) with consecutive rows, a (groups, M,
// K), b (groups, K, N). out may be float32 where a and b are half precision. To cuBLAS this is the
// transposed product, out^T = b^T @ a^T.
inline void gemm_out(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
                     bool add = false) {
  if (out.numel() == 0) return;
  const CublasMatrices to(out), left(a), right(b);
  TORCH_INTERNAL_ASSERT(to.stored_as_rows && a.size(2) == b.size(1) && a.size(2) > 0);
  const cublasComputeType_t compute = compute_type(a.scalar_type());
  const double in_double[] = {0, 1};
  const float in_float[] = {0, 1};
  const auto scalar = [&](bool one) -> const void* {  // 0 or 1, in the type of sums
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
