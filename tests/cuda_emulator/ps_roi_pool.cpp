#include "cuda/kernels/ps_roi_pool_cuda_kernel.h"

#include "roi_driver.h"

namespace cuda_emulator {

using namespace d2_deformable;

struct PsRoiPool {
  template <typename scalar_t, typename acc_t>
  static void run(const std::string& name, Arguments& in, File& out) {
    const PsRoiPoolSizes sizes{in.integer(), in.integer(), in.integer(),
                               in.integer(), in.integer(), in.integer(),
                               in.integer(), in.real(),    in.integer() != 0};
    const RoiGpu gpu{in.integer(), in.integer()};
    const auto input = in.array<scalar_t>();
    const auto rois = in.array<acc_t>();
    const auto grad_output = in.array<scalar_t>();
    const PsRoiPoolDivisors by(sizes);
    const int64_t pixels = sizes.height * sizes.width;
    const RoiWork work{sizes.images * sizes.top_channels * sizes.bins(), pixels, sizes.rois, 1, 9};
    const ListedRois<acc_t, PsRoiBins<acc_t>> listed(sizes, rois);
    const auto add = [&](auto in_order) {
      const RoiPlan plan = plan_adding(work, sizeof(acc_t), in_order.value, gpu);
      write_gradient<scalar_t, acc_t>(plan, pixels, out, [&](scalar_t* written, acc_t* sums) {
        launch_plan(PsRoiPoolInputGradientKernel<scalar_t, acc_t, in_order.value>{
            sizes, by, plan, listed.get(), grad_output.data(), written, sums});
      });
    };
    if (name == "forward") {
      const RoiPlan plan = plan_reading(work, sizeof(scalar_t), gpu);
      Array<scalar_t> output(sizes.rois * sizes.bins() * sizes.top_channels);
      launch_plan(PsRoiPoolKernel<scalar_t, acc_t>{sizes, by, plan, listed.get(), input.data(),
                                                   output.data()});
      out.write(output);
    } else if (name == "input_gradient") {
      add(std::false_type());
    } else if (name == "input_gradient_in_order") {
      add(std::true_type());
    } else {
      fail("ps_roi_pool has no kernel %s", name.c_str());
    }
  }
};

}  // namespace cuda_emulator

int main(int argc, char** argv) {
  return cuda_emulator::main<cuda_emulator::PsRoiPool>(argc, argv);
}
