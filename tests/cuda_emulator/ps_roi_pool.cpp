#include "kernels/ps_roi_pool.h"

#include "driver.h"

namespace cuda_emulator {

using namespace d2_deformable;

struct PsRoiPool {
  template <typename scalar_t, typename acc_t>
  static void run(const std::string& name, Arguments& in, File& out) {
    const PsRoiPoolSizes sizes{in.integer(), in.integer(), in.integer(),
                               in.integer(), in.integer(), in.integer(),
                               in.integer(), in.real(),    in.integer() != 0};
    const ChannelBlocks blocks(sizes.top_channels, sizes.top_channels, in.integer());
    const auto input = in.array<scalar_t>();
    const auto rois = in.array<acc_t>();
    const auto grad_output = in.array<scalar_t>();
    if (name == "forward") {
      Array<acc_t> output(sizes.rois * sizes.bins() * sizes.top_channels);
      launch_all(PsRoiPoolKernel<scalar_t, acc_t>{sizes, blocks, input.data(), rois.data(),
                                                  output.data()});
      out.write(output);
    } else if (name == "input_gradient") {
      Array<acc_t> grad_input(sizes.images * sizes.height * sizes.width * sizes.pixel_stride(), 0);
      launch_all(PsRoiPoolInputGradientKernel<scalar_t, acc_t, AtomicAdd>{
          sizes, blocks, grad_output.data(), rois.data(), grad_input.data(), AtomicAdd{}});
      out.write(grad_input);
    } else {
      fail("ps_roi_pool has no kernel %s", name.c_str());
    }
  }
};

}  // namespace cuda_emulator

int main(int argc, char** argv) {
  return cuda_emulator::main<cuda_emulator::PsRoiPool>(argc, argv);
}
