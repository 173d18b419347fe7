// deform_conv2d on CUDA. Works on chunks of rows (output positions of all images), one after
// another. Forward samples the columns of a chunk and multiplies them by the weight into rows of
// the output. Backward has three steps per chunk:
// 1. A matrix multiply of grad_output and weight gives the gradients of the columns.
// 2. One kernel computes the gradients of input, offset and mask from them, and overwrites
//    them with the columns.
// 3. A matrix multiply of grad_output and columns adds to the gradient of the weight.
//
// Memory besides results: at most kColumnBytes of columns and, in backward, float32 gradients of
// input and weight where these are half precision. What has another layout or type than the
// kernels' is copied: input, grad_output and weight that are not channels-last, offset and mask in
// half precision, and results that must not be channels-last.
#include "../deform_conv2d_sizes.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../layout.h"
#include "gemm_cublas.h"
#include "kernels/deform_conv2d_cuda_kernel.h"
#include "launch.h"
#include "plan.h"

namespace d2_deformable {
namespace {

// (N, C, H, W) -> [N][H][W][C]
at::Tensor to_channels_last(const at::Tensor& map) {
  return map.permute({0, 2, 3, 1}).contiguous();
}

// What a call reads, in the layouts and types of the kernels, and the buffer for its columns.
class Operands {
 public:
  Operands(const DeformConv2dSizes& s, const at::Tensor& input, const at::Tensor& offset,
           const at::Tensor& weight, const std::optional<at::Tensor>& mask)
      : sizes_(s),
        type_(input.scalar_type()),
        sum_type_(at::toOpMathType(type_)),
        input_(to_channels_last(input)),
        offset_(to_coordinates(offset, sum_type_)),
        mask_(to_coordinates(mask, sum_type_)),
        weight_(to_channels_last(weight).view({s.groups, s.out_channels / s.groups, -1})),
        chunks_(checked_chunks(s, input_.element_size())),
        columns_(at::empty({chunks_.size, s.groups, weight_.size(2)}, input_.options())) {}

  const Chunks& chunks() const { return chunks_; }
  const at::Tensor& weight() const { return weight_; }  // (groups, O / groups, K * Cg)
  at::TensorOptions sum_options() const { return input_.options().dtype(sum_type_); }

  // (groups, rows, K * Cg): the rows of the buffer that the chunk uses.
  at::Tensor columns(int64_t chunk) const {
    return columns_.narrow(0, 0, chunks_.length(chunk)).transpose(0, 1);
  }
  // (groups, rows, O / groups): the chunk's rows of [N][Ho][Wo][O].
  at::Tensor output_rows(const at::Tensor& output, int64_t chunk) const {
    return output.view({sizes_.rows(), sizes_.groups, -1})
        .narrow(0, chunks_.first(chunk), chunks_.length(chunk))
        .transpose(0, 1);
  }

  void fill_columns(int64_t chunk) const {
    dispatch([&](auto type, auto packed) {
      using scalar_t = decltype(type);
      using acc_t = at::opmath_type<scalar_t>;
      launch_units(DeformConv2dColumnsKernel<scalar_t, acc_t, packed.value>{
          kernel_chunk<acc_t>(chunk), lanes<scalar_t, packed.value>(),
          input_.const_data_ptr<scalar_t>(), columns_.mutable_data_ptr<scalar_t>()});
    });
  }

  // Replaces the gradients of the columns in the buffer by the columns. Adds to grad_input if it is
  // defined, and writes the chunk's elements of grad_offset and grad_mask.
  void exchange_columns(int64_t chunk, const at::Tensor& grad_input, const at::Tensor& grad_offset,
                        const at::Tensor& grad_mask) const {
    dispatch([&](auto type, auto packed) {
      using scalar_t = decltype(type);
      using acc_t = at::opmath_type<scalar_t>;
      launch_units(DeformConv2dGradientsKernel<scalar_t, acc_t, packed.value>{
          kernel_chunk<acc_t>(chunk), lanes<scalar_t, packed.value>(),
          input_.const_data_ptr<scalar_t>(), columns_.const_data_ptr<scalar_t>(),
          columns_.mutable_data_ptr<scalar_t>(), grad_offset.mutable_data_ptr<acc_t>(),
          mask_.defined() ? grad_mask.mutable_data_ptr<acc_t>() : nullptr,
          grad_input.defined() ? grad_input.mutable_data_ptr<acc_t>() : nullptr});
    });
  }

  // Adds to grad_input only, always in the same order. The gradients of the columns stay in the
  // buffer.
  void add_in_order(int64_t chunk, const at::Tensor& grad_input) const {
    dispatch([&](auto type, auto) {
      using scalar_t = decltype(type);
      using acc_t = at::opmath_type<scalar_t>;
      const DeformConv2dOwnedInputGradientKernel<scalar_t, acc_t> kernel{
          kernel_chunk<acc_t>(chunk), columns_.const_data_ptr<scalar_t>(),
          grad_input.mutable_data_ptr<acc_t>()};
      launch_on_stream(kernel, kernel.owners(), 1);
    });
  }

 private:
  // Calls run(scalar_t(), packed). packed: whether packs of 16 bytes divide the channels of each
  // weight group and each offset group, and the input is 16-byte aligned.
  template <typename Run>
  void dispatch(const Run& run) const {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type_, "deform_conv2d on CUDA", [&] {
      constexpr int64_t size = Channels<scalar_t, true>::kSize;
      const bool packed = sizes_.channels / sizes_.groups % size == 0 &&
                          sizes_.channels / sizes_.offset_groups % size == 0 &&
                          reinterpret_cast<uintptr_t>(input_.const_data_ptr()) % 16 == 0;
      packed ? run(scalar_t(), std::true_type()) : run(scalar_t(), std::false_type());
    });
  }

  template <typename acc_t>
  DeformConv2dChunk<acc_t> kernel_chunk(int64_t chunk) const {
    return {sizes_, offset_.const_data_ptr<acc_t>(), data_or_null<acc_t>(mask_),
            chunks_.first(chunk), chunks_.length(chunk)};
  }
  template <typename scalar_t, bool kPacked>
  int lanes() const {
    return plan_lanes(
        ceil_div(sizes_.channels / sizes_.offset_groups, Channels<scalar_t, kPacked>::kSize));
  }

  // Some indices of the kernels have 32 bits.
  static Chunks checked_chunks(const DeformConv2dSizes& s, int64_t element_size) {
    const Chunks chunks = plan_chunks(s.rows(), s.taps() * s.channels * element_size);
    const auto check = [](const char* what, int64_t count) {
      TORCH_CHECK(count < (1 << 30), "deform_conv2d on CUDA: ", count, " ", what,
                  ", must be less than 2^30");
    };
    check("channels", s.channels);
    check("pixels of a map", s.height * s.width);
    check("positions of an output", s.image_rows());
    check("sampling points at a time", chunks.size * s.taps() * s.offset_groups);
    return chunks;
  }

  template <typename Kernel>
  static void launch_units(const Kernel& kernel) {
    launch_on_stream(kernel, kernel.chunk.units(), kernel.lanes);
  }
  template <typename Kernel>
  static void launch_on_stream(const Kernel& kernel, int64_t count, int lanes) {
    const Grid grid{plan_blocks(count, lanes), kLaunchThreads, 0};
    C10_CUDA_CHECK(launch(kernel, grid, c10::cuda::getCurrentCUDAStream()));
  }

  const DeformConv2dSizes sizes_;
  const at::ScalarType type_, sum_type_;
  const at::Tensor input_;   // [N][H][W][C]
  const at::Tensor offset_;  // [N][G][K][y, x][Ho][Wo], of sum_type_
  const at::Tensor mask_;    // [N][G][K][Ho][Wo], of sum_type_, or undefined
  const at::Tensor weight_;  // [groups][O / groups][K * Cg]
  const Chunks chunks_;
  const at::Tensor columns_;  // [rows of a chunk][groups][K * Cg]
};

// From [N][H][W][C], a map or weight [O][kernel_h][kernel_w][Cg], to (N, C, H, W) of the given type
// and format, with one copy at most.
at::Tensor from_channels_last(const at::Tensor& map, at::ScalarType type, at::MemoryFormat format) {
  return map.permute({0, 3, 1, 2})
      .to(type, /*non_blocking=*/false, /*copy=*/false, format)
      .contiguous(format);
}

at::Tensor deform_conv2d_cuda(const at::Tensor& input, const at::Tensor& offset,
                              const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                              at::IntArrayRef stride, at::IntArrayRef padding,
                              at::IntArrayRef dilation, const std::optional<at::Tensor>& mask,
                              std::string_view border) {
  const auto s =
      deform_conv2d_sizes(input, offset, weight, bias, mask, stride, padding, dilation, border);
  const c10::DeviceGuard guard(input.device());
  const Operands op(s, input, offset, weight, mask);
  const auto output =
      at::empty({s.images, s.out_height, s.out_width, s.out_channels}, input.options());
  if (bias) output.copy_(*bias);  // only cublasLt has an epilogue that adds it
  for (int64_t chunk = 0; chunk < op.chunks().count(); ++chunk) {
    op.fill_columns(chunk);
    gemm_out(op.output_rows(output, chunk), op.columns(chunk), op.weight().transpose(1, 2),
             /*add=*/bias.has_value());
  }
  return from_channels_last(output, input.scalar_type(), memory_format(input));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_conv2d_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& weight, const std::optional<at::Tensor>& mask, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, std::string_view border) {
  const auto s = deform_conv2d_backward_sizes(grad_output, input, offset, weight, mask, stride,
                                              padding, dilation, border);

  const c10::DeviceGuard guard(input.device());
  const bool in_order = at::globalContext().deterministicAlgorithms();
  const Operands op(s, input, offset, weight, mask);
  const auto grad_rows = to_channels_last(grad_output);
  const auto grad_input = at::zeros({s.images, s.height, s.width, s.channels}, op.sum_options());
  const auto grad_offset = at::empty(offset.sizes(), op.sum_options());
  const auto grad_mask = at::empty(mask ? mask->sizes() : at::IntArrayRef({0}), op.sum_options());
  const auto grad_weight = at::empty(op.weight().sizes(), op.sum_options());
  if (s.rows() == 0) grad_weight.zero_();
  for (int64_t chunk = 0; chunk < op.chunks().count(); ++chunk) {
    const auto columns = op.columns(chunk), grad_out = op.output_rows(grad_rows, chunk);
    gemm_out(columns, grad_out, op.weight());
    if (in_order) op.add_in_order(chunk, grad_input);
    op.exchange_columns(chunk, in_order ? at::Tensor() : grad_input, grad_offset, grad_mask);
    gemm_out(grad_weight, grad_out.transpose(1, 2), columns, /*add=*/chunk > 0);
  }
  return {from_channels_last(grad_input, input.scalar_type(), memory_format(input)),
          grad_offset.to(offset.scalar_type()),
          from_channels_last(
              grad_weight.view({s.out_channels, s.kernel_h, s.kernel_w, s.channels / s.groups}),
              weight.scalar_type(), at::MemoryFormat::Contiguous),
          grad_mask.to(mask ? mask->scalar_type() : input.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2_deformable, CUDA, m) {
  m.impl("deform_conv2d", TORCH_FN(deform_conv2d_cuda));
  m.impl("deform_conv2d_backward", TORCH_FN(deform_conv2d_backward_cuda));
}

}  // namespace d2_deformable
