#include "cuda/kernels/deform_conv2d_cuda_kernel.h"

#include "cuda/plan.h"
#include "driver.h"

namespace cuda_emulator {

using namespace d2_deformable;

struct DeformConv2d {
  template <typename scalar_t, typename acc_t>
  static void run(const std::string& name, Arguments& in, File& out) {
    const bool packed = in.integer();
    packed ? run<scalar_t, acc_t, true>(name, in, out) : run<scalar_t, acc_t, false>(name, in, out);
  }

  template <typename scalar_t, typename acc_t, bool kPacked>
  static void run(const std::string& name, Arguments& in, File& out) {
    const DeformConv2dSizes sizes{
        in.integer(), in.integer(), in.integer(), in.integer(), in.integer(), in.integer(),
        in.integer(), in.integer(), in.integer(), in.integer(), in.integer(), in.integer(),
        in.integer(), in.integer(), in.integer(), in.integer(), in.integer(), Border(in.integer())};
    const int64_t first_row = in.integer(), rows = in.integer();
    const auto input = in.array<scalar_t>();
    const auto offset = in.array<acc_t>();
    const auto mask = in.array<acc_t>();
    const auto grad_columns = in.array<scalar_t>();
    const DeformConv2dChunk<acc_t> chunk(sizes, offset.data(), mask.data(), first_row, rows);
    const int lanes = plan_lanes(ceil_div(chunk.unit_channels, Channels<scalar_t, kPacked>::kSize));
    const auto launch = [](const auto& kernel, int64_t count, int lanes) {
      launch_grid(kernel, {plan_blocks(count, lanes), kLaunchThreads, 0});
    };

    if (name == "columns") {
      Array<scalar_t> columns(rows * sizes.taps() * sizes.channels);
      launch(DeformConv2dColumnsKernel<scalar_t, acc_t, kPacked>{chunk, lanes, input.data(),
                                                                 columns.data()},
             chunk.units(), lanes);
      out.write(columns);
      return;
    }
    Array<acc_t> grad_input(sizes.images * sizes.height * sizes.width * sizes.channels, 0);
    if (name == "gradients" || name == "gradients_of_points") {
      const int64_t points = sizes.rows() * sizes.taps() * sizes.offset_groups;
      Array<acc_t> grad_offset(2 * points), grad_mask(mask ? points : 0);
      launch(
          DeformConv2dGradientsKernel<scalar_t, acc_t, kPacked>{
              chunk, lanes, input.data(), grad_columns.data(), grad_columns.data(),
              grad_offset.data(), mask ? grad_mask.data() : nullptr,
              name == "gradients" ? grad_input.data() : nullptr},
          chunk.units(), lanes);
      out.write(grad_columns);  // now columns
      out.write(grad_offset);
      out.write(grad_mask);
    } else if (name == "owned_input_gradient") {
      const DeformConv2dOwnedInputGradientKernel<scalar_t, acc_t> kernel{chunk, grad_columns.data(),
                                                                         grad_input.data()};
      launch(kernel, kernel.owners(), 1);
    } else {
      fail("deform_conv2d has no kernel %s", name.c_str());
    }
    out.write(grad_input);
  }
};

}  // namespace cuda_emulator

int main(int argc, char** argv) {
  return cuda_emulator::main<cuda_emulator::DeformConv2d>(argc, argv);
}
