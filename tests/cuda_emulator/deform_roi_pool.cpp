#include "cuda/kernels/deform_roi_pool_cuda_kernel.h"

#include "cuda/kernels/deform_roi_pool_input_gradient_cuda_kernel.h"
#include "cuda/kernels/deform_roi_pool_offset_gradient_cuda_kernel.h"
#include "roi_driver.h"

namespace cuda_emulator {

using namespace d2_deformable;

struct DeformRoiPool {
  template <typename scalar_t, typename acc_t>
  static void run(const std::string& name, Arguments& in, File& out) {
    if (in.integer()) {
      run_rule<scalar_t, acc_t, RoiSampling::kAlign>(name, in, out);
    } else {
      run_rule<scalar_t, acc_t, RoiSampling::kPool>(name, in, out);
    }
  }

  template <typename scalar_t, typename acc_t, RoiSampling rule>
  static void run_rule(const std::string& name, Arguments& in, File& out) {
    const DeformRoiPoolSizes sizes{in.integer(), in.integer(), in.integer(),      in.integer(),
                                   in.integer(), in.integer(), in.integer(),      in.integer(),
                                   in.integer(), in.integer(), in.integer(),      in.integer(),
                                   in.real(),    in.real(),    in.integer() != 0, rule};
    const RoiGpu gpu{in.integer(), in.integer()};
    const auto input = in.array<scalar_t>();
    const auto rois = in.array<acc_t>();
    const auto offset = in.array<acc_t>();
    const auto grad_output = in.array<scalar_t>();
    const DeformRoiPoolDivisors by(sizes);
    const int64_t pixels = sizes.height * sizes.width;
    const int64_t output_size = sizes.rois * sizes.bins() * sizes.top_channels;
    const RoiWork work{sizes.images * sizes.top_channels * sizes.bin_groups(), pixels, sizes.rois,
                       ceil_div(sizes.bins(), sizes.bin_groups()), 16};
    const ListedRois<acc_t, DeformRoiBins<acc_t>> listed(sizes, rois);
    const RoiPlan reading = plan_reading(work, sizeof(scalar_t), gpu);
    const auto add = [&](auto in_order) {
      const RoiPlan plan = plan_adding(work, sizeof(acc_t), in_order.value, gpu);
      write_gradient<scalar_t, acc_t>(plan, pixels, out, [&](scalar_t* written, acc_t* sums) {
        launch_plan(DeformRoiPoolInputGradientKernel<scalar_t, acc_t, rule, in_order.value>{
            sizes, by, plan, listed.get(), grad_output.data(), offset.data(), written, sums});
      });
    };
    if (name == "forward") {
      Array<scalar_t> output(output_size);
      launch_plan(DeformRoiPoolKernel<scalar_t, acc_t, rule>{
          sizes, by, reading, listed.get(), input.data(), offset.data(), output.data()});
      out.write(output);
    } else if (name == "input_gradient") {
      add(std::false_type());
    } else if (name == "input_gradient_in_order") {
      add(std::true_type());
    } else if (name == "offset_gradient") {
      Array<acc_t> grad_shift(2 * output_size);
      Array<acc_t> grad_offset(sizes.rois * sizes.classes * 2 * sizes.parts_h * sizes.parts_w);
      launch_plan(DeformRoiPoolShiftGradientKernel<scalar_t, acc_t, rule>{
          sizes, by, reading, listed.get(), grad_output.data(), input.data(), offset.data(),
          grad_shift.data()});
      const DeformRoiPoolOffsetGradientKernel<scalar_t, acc_t> add_up{
          sizes, plan_lanes(sizes.class_channels()), grad_shift.data(), rois.data(),
          grad_offset.data()};
      launch_grid(add_up, {plan_blocks(add_up.owners(), add_up.lanes), kLaunchThreads, 0});
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
