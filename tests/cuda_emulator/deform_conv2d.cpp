#include "kernels/deform_conv2d.h"

#include "driver.h"

namespace cuda_emulator {

using namespace d2_deformable;

struct DeformConv2d {
  template <typename scalar_t, typename acc_t>
  static void run(const std::string& name, Arguments& in, File& out) {
    const DeformConv2dSizes sizes{
        in.integer(), in.integer(), in.integer(), in.integer(), in.integer(), in.integer(),
        in.integer(), in.integer(), in.integer(), in.integer(), in.integer(), in.integer(),
        in.integer(), in.integer(), in.integer(), in.integer(), in.integer(), Border(in.integer())};
    const ChannelBlocks blocks(sizes.channels, sizes.channels / sizes.offset_groups, in.integer());
    const RowRange rows{in.integer(), in.integer(), in.integer()};
    const int64_t columns_size = rows.capacity * sizes.taps() * sizes.channels;
    const int64_t mask_size = sizes.rows() * sizes.taps() * sizes.offset_groups;
    const auto input = in.array<scalar_t>();
    const auto offset = in.array<acc_t>();
    const auto mask = in.array<acc_t>();
    if (name == "columns") {
      Array<scalar_t> columns(columns_size);
      launch_all(DeformConv2dColumnsKernel<scalar_t, acc_t>{
          sizes, blocks, rows, input.data(), offset.data(), mask.data(), columns.data()});
      out.write(columns);
    } else if (name == "gradients") {
      const auto grad_columns = in.array<scalar_t>();
      const int64_t input_size = sizes.images * sizes.height * sizes.width * sizes.channels;
      Array<acc_t> grad_input(input_size, 0);
      Array<acc_t> grad_offset(blocks.per_unit * 2 * mask_size);
      Array<acc_t> grad_mask(mask ? blocks.per_unit * mask_size : 0);
      launch_all(DeformConv2dGradientsKernel<scalar_t, acc_t, AtomicAdd>{
          sizes, blocks, rows, grad_columns.data(), input.data(), offset.data(), mask.data(),
          grad_input.data(), grad_offset.data(), mask ? grad_mask.data() : nullptr, AtomicAdd{}});
      out.write(grad_input);
      out.write(grad_offset);
      out.write(grad_mask);
    } else {
      fail("deform_conv2d has no kernel %s", name.c_str());
    }
  }
};

}  // namespace cuda_emulator

int main(int argc, char** argv) {
  return cuda_emulator::main<cuda_emulator::DeformConv2d>(argc, argv);
}
