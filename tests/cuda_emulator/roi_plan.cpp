// Functions of csrc/cuda/roi_plan.h for Python's ctypes.
#include "cuda/roi_plan.h"

#include <iterator>

using namespace d2_deformable;

namespace {

void write(const RoiPlan& plan, int64_t* out) {
  const int64_t values[] = {
      plan.planes, plan.splits.divisor(), plan.threads,      plan.roi_threads.divisor(),
      plan.shared, plan.copies,           plan.shared_bytes, plan.pieces()};
  std::copy(std::begin(values), std::end(values), out);
}

}  // namespace

extern "C" {

void reading(int64_t planes, int64_t pixels, int64_t rois, int64_t bins, int64_t reads_per_bin,
             int64_t pixel_bytes, int64_t processors, int64_t shared_bytes, int64_t* out) {
  write(plan_reading({planes, pixels, rois, bins, reads_per_bin}, pixel_bytes,
                     {processors, shared_bytes}),
        out);
}

void adding(int64_t planes, int64_t pixels, int64_t rois, int64_t bins, int64_t sum_bytes,
            int64_t in_order, int64_t processors, int64_t shared_bytes, int64_t* out) {
  write(plan_adding({planes, pixels, rois, bins, 1}, sum_bytes, in_order != 0,
                    {processors, shared_bytes}),
        out);
}
}
