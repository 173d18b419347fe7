// Plans how the kernels of the RoI operators share out their work. Pure functions of sizes, free of
// ATen and CUDA, so that tests/cuda_emulator/test_roi_plan.py can test them with any sizes.
//
// A plane is the map of one channel of one image: H x W pixels, contiguous in memory. A block works
// on one piece at a time: a plane, held in shared memory if it fits. Where blocks only read,
// several may work on one plane, each for a split of the RoIs. roi_threads threads of a block take
// one bin, and each of them a RoI; the next roi_threads take the next bin.
#pragma once

#include <algorithm>
#include <cstdint>

#include "divisor.h"
#include "plan.h"

namespace d2_deformable {

struct RoiWork {
  int64_t planes;         // of all images
  int64_t pixels;         // of a plane
  int64_t rois;           // of an image, on average
  int64_t bins;           // that read one plane
  int64_t reads_per_bin;  // in pixels, roughly
};

struct RoiGpu {
  int64_t processors;
  int64_t shared_bytes;  // the most that one block may have
};

struct RoiPlan {
  int64_t planes;
  Divisor splits;       // of the RoIs: pieces per plane
  int threads;          // of a block, a multiple of roi_threads
  Divisor roi_threads;  // of a bin; a multiple of a warp, so that a warp has one bin at a time
  bool shared;          // the plane is in shared memory, else in place
  int copies;           // of the plane in shared memory
  int64_t shared_bytes;

  D2_HOST_DEVICE int64_t pieces() const { return planes * splits.divisor(); }
};

// Size of a round if `count` is spread evenly over the fewest possible rounds of at most `most`.
inline int64_t even_round(int64_t count, int64_t most) {
  return std::max<int64_t>(ceil_div(count, std::max<int64_t>(ceil_div(count, most), 1)), 1);
}

// Enough threads that a processor is busy with all the blocks it can hold. Blocks must be larger if
// there are few planes, or if planes are so large that only few fit into shared memory.
inline int plan_most_threads(const RoiWork& work, const RoiGpu& gpu, int64_t shared_bytes) {
  constexpr int64_t kBlocks = 8;  // so many blocks of 256 threads fill a processor
  const bool few = work.planes < gpu.processors * kBlocks;
  return few || shared_bytes * kBlocks > gpu.shared_bytes ? 512 : 256;
}

// Spreads bins over threads first: a thread then takes several RoIs and computes once what these
// have in common.
inline void plan_threads(const RoiWork& work, int most_threads, RoiPlan& plan) {
  const int64_t bins = even_round(work.bins, most_threads / kWarp);
  const int64_t most_warps = most_threads / kWarp / bins;
  const int64_t warps = even_round(ceil_div(work.rois, kWarp), most_warps);
  plan.roi_threads = Divisor(warps * kWarp);
  plan.threads = int(bins * warps * kWarp);
}

// For kernels that read planes of pixel_bytes per pixel. Copying a plane to shared memory pays only
// if the bins read as many pixels as it has; each split makes a copy of its own. The 16 extra bytes
// let the copy have the same alignment to 16 bytes as the plane.
inline RoiPlan plan_reading(const RoiWork& work, int64_t pixel_bytes, const RoiGpu& gpu) {
  RoiPlan plan{};
  const int64_t bytes = work.pixels * pixel_bytes + 16;
  // How often the bins read as many pixels as a plane has.
  const int64_t plane_reads =
      work.rois * work.bins / std::max<int64_t>(work.pixels / work.reads_per_bin, 1);
  plan.planes = work.planes;
  plan.shared = bytes <= gpu.shared_bytes && plane_reads > 0;
  plan.copies = plan.shared ? 1 : 0;
  plan.shared_bytes = plan.shared ? bytes : 0;
  // float64 takes twice the registers.
  plan_threads(work, pixel_bytes == 8 ? 256 : plan_most_threads(work, gpu, plan.shared_bytes),
               plan);
  const int64_t wanted = ceil_div(gpu.processors * 8, std::max<int64_t>(work.planes, 1));
  const int64_t splits = std::min(ceil_div(work.rois, plan.roi_threads.divisor()), wanted);
  plan.splits = Divisor(std::max<int64_t>(plan.shared ? std::min(splits, plane_reads) : splits, 1));
  return plan;
}

// For kernels that add to planes of sum_bytes per pixel, each of which one block owns. If in_order,
// each warp adds to its own copy of the plane, in a fixed order.
inline RoiPlan plan_adding(const RoiWork& work, int64_t sum_bytes, bool in_order,
                           const RoiGpu& gpu) {
  constexpr int64_t kMostCopies = 8;
  RoiPlan plan{};
  const int64_t bytes = work.pixels * sum_bytes;
  plan.planes = work.planes;
  plan.shared = bytes <= gpu.shared_bytes;
  plan.copies = plan.shared ? 1 : 0;
  if (in_order) {
    // Copies take at most a quarter of the memory; more would leave processors with too few blocks.
    const int64_t fit = std::min(kMostCopies, gpu.shared_bytes / 4 / bytes);
    if (plan.shared) plan.copies = int(std::max<int64_t>(std::min(fit, work.rois), 1));
    plan.roi_threads = Divisor(kWarp);
    plan.threads = kWarp * std::max(plan.copies, 1);
  } else {
    plan_threads(work, plan_most_threads(work, gpu, plan.shared ? bytes : 0), plan);
  }
  plan.shared_bytes = plan.copies * bytes;
  return plan;
}

}  // namespace d2_deformable
