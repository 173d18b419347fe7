#include "kernels/deform_roi_pool.h"

#include "driver.h"

namespace cuda_emulator {

using namespace d2_deformable;

struct DeformRoiPool {
  template <typename scalar_t, typename acc_t>
  static void run(const std::string& name, Arguments& in, File& out) {
    const DeformRoiPoolSizes sizes{in.integer(), in.integer(), in.integer(),     in.integer(),
                                   in.integer(), in.integer(), in.integer(),     in.integer(),
                                   in.integer(), in.integer(), in.integer(),     in.integer(),
                                   in.real(),    in.real(),    in.integer() != 0};
    const ChannelBlocks blocks(sizes.top_channels, sizes.class_channels(), in.integer());
    const auto input = in.array<scalar_t>();
    const auto rois = in.array<acc_t>();
    const auto offset = in.array<acc_t>();
    const auto grad_output = in.array<scalar_t>();
    if (name == "forward") {
      Array<acc_t> output(sizes.rois * sizes.bins() * sizes.top_channels);
      launch_all(DeformRoiPoolKernel<scalar_t, acc_t>{sizes, blocks, input.data(), rois.data(),
                                                      offset.data(), output.data()});
      out.write(output);
    } else if (name == "input_gradient") {
      Array<acc_t> grad_input(sizes.images * sizes.height * sizes.row_stride(), 0);
      launch_all(DeformRoiPoolInputGradientKernel<scalar_t, acc_t, AtomicAdd>{
          sizes, blocks, grad_output.data(), rois.data(), offset.data(), grad_input.data(),
          AtomicAdd{}});
      out.write(grad_input);
    } else if (name == "offset_gradient") {
      Array<acc_t> grad_offset(sizes.rois * sizes.classes * 2 * sizes.parts_h * sizes.parts_w);
      launch_all(DeformRoiPoolOffsetGradientKernel<scalar_t, acc_t>{
          sizes, grad_output.data(), input.data(), rois.data(), offset.data(), grad_offset.data()});
      out.write(grad_offset);
    } else {
      fail("deform_roi_pool has no kernel %s", name.c_str());
    }
  }
};

}  // namespace cuda_emulator

int main(int argc, char** argv) {
  return cuda_emulator::main<cuda_emulator::DeformRoiPool>(argc, argv);
}
