// Products of matrices as a convolution wants them, in batches: one of each weight group.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>

#include <optional>

#include "precision.h"

namespace d2_deformable {

// out = a @ b + bias; out (groups, M, N), a (groups, M, K), b (groups, K, N), bias (groups * N).
// ATen lets cuBLASLt add the bias of one group; that of several it writes to out beforehand.
inline void product_out(at::Tensor out, const at::Tensor& a, const at::Tensor& b,
                        const std::optional<at::Tensor>& bias = std::nullopt) {
  const ConvolutionPrecision precision;
  if (!bias) {
    at::bmm_out(out, a, b);
  } else if (out.size(0) == 1) {
    out = out[0];
    at::addmm_out(out, bias->contiguous(), a[0], b[0]);
  } else {
    at::baddbmm_out(out, bias->view({out.size(0), 1, out.size(2)}), a, b);
  }
}

// Whether cuBLAS, as ATen calls it, sums products of this type in float32 and leaves them so.
inline bool has_float_sums(at::ScalarType type) {
  if (type == at::kHalf) return !at::globalContext().allowFP16AccumulationCuBLAS();
  return type != at::kBFloat16 || at::cuda::getCurrentDeviceProperties()->major >= 8;
}

// sum = a @ b, or sum += a @ b, shapes as above. Of half-precision matrices the sum is float32.
inline void sum_products_out(at::Tensor sum, const at::Tensor& a, const at::Tensor& b, bool add) {
  const ConvolutionPrecision precision;
  const int beta = add ? 1 : 0;  // 0: nobody reads what is in sum
  if (a.scalar_type() == sum.scalar_type()) {
    at::baddbmm_out(sum, sum, a, b, beta);
  } else if (has_float_sums(a.scalar_type())) {
    at::baddbmm_out(sum, sum, a, b, sum.scalar_type(), beta);
  } else if (add) {
    sum.add_(at::bmm(a, b));
  } else {
    sum.copy_(at::bmm(a, b));
  }
}

}  // namespace d2_deformable
