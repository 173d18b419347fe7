// cuBLAS' matrix multiply of column-major matrices, by plain loops.
#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <vector>

namespace {

cublasContext handle{CUBLAS_DEFAULT_MATH};

// The compute type that each multiply was called with, and the handle's mode at that time.
struct Gemm {
  int32_t compute_type, math_mode;
};
std::vector<Gemm> gemms;

template <typename T>
struct Matrix {
  T* data;
  int64_t leading;
  bool transposed;
  T& at(int64_t row, int64_t column) const {
    return transposed ? data[column + row * leading] : data[row + column * leading];
  }
};

template <typename In, typename Out, typename Sum>
void multiply(const Matrix<const In>& a, const Matrix<const In>& b, const Matrix<Out>& c, int64_t m,
              int64_t n, int64_t k, Sum alpha, Sum beta) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      Sum sum = 0;
      for (int64_t l = 0; l < k; ++l) sum += Sum(a.at(i, l)) * Sum(b.at(l, j));
      sum *= alpha;
      if (beta != 0) sum += beta * Sum(c.at(i, j));  // otherwise c may be uninitialised
      c.at(i, j) = Out(sum);
    }
  }
}

}  // namespace

namespace at::cuda {

// In ATen the handle's mode follows the precision setting of matrix multiplies.
cublasHandle_t getCurrentCUDABlasHandle() {
  const bool tf32 = globalContext().float32Precision(Float32Backend::CUDA, Float32Op::MATMUL) ==
                    Float32Precision::TF32;
  handle.math_mode = tf32 ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH;
  return &handle;
}

}  // namespace at::cuda

cublasStatus_t cublasGemmStridedBatchedEx_64(
    cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int64_t m, int64_t n,
    int64_t k, const void* alpha, const void* a, cudaDataType a_type, int64_t lda,
    long long stride_a, const void* b, cudaDataType b_type, int64_t ldb, long long stride_b,
    const void* beta, void* c, cudaDataType c_type, int64_t ldc, long long stride_c,
    int64_t batch_count, cublasComputeType_t compute_type, cublasGemmAlgo_t) {
  const bool turn_a = transa == CUBLAS_OP_T, turn_b = transb == CUBLAS_OP_T;
  const auto at_least = [](int64_t leading, int64_t rows) {
    return leading >= std::max<int64_t>(1, rows);
  };
  if (m < 0 || n < 0 || k < 0 || batch_count < 0 || !at_least(lda, turn_a ? k : m) ||
      !at_least(ldb, turn_b ? n : k) || !at_least(ldc, m) || a_type != b_type) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  gemms.push_back({compute_type, handle->math_mode});
  const auto run = [&](auto in, auto out, auto sum) {
    using In = decltype(in);
    using Out = decltype(out);
    using Sum = decltype(sum);
    for (int64_t batch = 0; batch < batch_count; ++batch) {
      multiply(Matrix<const In>{static_cast<const In*>(a) + batch * stride_a, lda, turn_a},
               Matrix<const In>{static_cast<const In*>(b) + batch * stride_b, ldb, turn_b},
               Matrix<Out>{static_cast<Out*>(c) + batch * stride_c, ldc, false}, m, n, k,
               *static_cast<const Sum*>(alpha), *static_cast<const Sum*>(beta));
    }
    return CUBLAS_STATUS_SUCCESS;
  };
  using c10::BFloat16, c10::Half;
  const auto is = [&](cudaDataType in, cudaDataType out) { return a_type == in && c_type == out; };
  if (compute_type == CUBLAS_COMPUTE_64F) {
    if (is(CUDA_R_64F, CUDA_R_64F)) return run(double(), double(), double());
  } else if (compute_type == CUBLAS_COMPUTE_32F_FAST_TF32) {
    if (is(CUDA_R_32F, CUDA_R_32F)) return run(float(), float(), float());
  } else if (compute_type == CUBLAS_COMPUTE_32F) {
    if (is(CUDA_R_32F, CUDA_R_32F)) return run(float(), float(), float());
    if (is(CUDA_R_16F, CUDA_R_16F)) return run(Half(), Half(), float());
    if (is(CUDA_R_16F, CUDA_R_32F)) return run(Half(), float(), float());
    if (is(CUDA_R_16BF, CUDA_R_16BF)) return run(BFloat16(), BFloat16(), float());
    if (is(CUDA_R_16BF, CUDA_R_32F)) return run(BFloat16(), float(), float());
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

// For the tests: writes the multiplies since the last call, at most `size`, and returns their
// number.
extern "C" int64_t take_gemms(Gemm* to, int64_t size) {
  const int64_t count = gemms.size();
  std::copy_n(gemms.begin(), std::min(count, size), to);
  gemms.clear();
  return count;
}
// The mode that the last multiply left in the handle.
extern "C" int32_t math_mode() { return handle.math_mode; }
