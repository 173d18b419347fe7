// How the kernels of the RoI operators share out their work: a pure function of sizes, free of ATen
// and of CUDA, so that tests/cuda_emulator/test_roi_plan.py can ask it about any sizes.
//
// A plane is the map of one channel of one image: H x W neighbours in memory. A block owns a plane
// (or, reading only, one of several splits of its RoIs) and has it in shared memory if it fits. Its
// threads are a table of roi_lanes columns: a row takes a bin, a column a RoI.
#pragma once

#include <algorithm>
#include <cstdint>

namespace d2_deformable {

constexpr int kWarp = 32;

struct RoiWork {
  int64_t planes;         // of all images
  int64_t pixels;         // of a plane
  int64_t rois;           // of an image, on average
  int64_t bins;           // that read one plane
  int64_t reads_per_bin;  // pixels, roughly
};

struct RoiGpu {
  int64_t processors;
  int64_t shared_bytes;  // at most, for one block
};

struct RoiPlan {
  int64_t planes, splits;  // the pieces of work: blocks go from one to the next
  int threads, roi_lanes;  // of a block; threads is a multiple of roi_lanes
  bool shared;             // the plane is in shared memory, else it stays where it is
  int copies;              // of the plane in shared memory
  int64_t shared_bytes;

  int64_t pieces() const { return planes * splits; }
};

// In how many rounds of at most `most` pieces `value` of them are done.
inline int64_t count_rounds(int64_t value, int64_t most) {
  return value / most + (value % most != 0);
}
// Pieces per round if all rounds, but for the last, are alike.
inline int64_t even_round(int64_t value, int64_t most) {
  return std::max<int64_t>(count_rounds(value, std::max<int64_t>(count_rounds(value, most), 1)), 1);
}

// As many threads as keep a processor busy together with the blocks beside this one: few planes, or
// large ones, must have larger blocks.
inline int plan_most_threads(const RoiWork& work, const RoiGpu& gpu, int64_t shared_bytes) {
  constexpr int64_t kBlocks = 8;  // of 256 threads fill a processor
  const bool few = work.planes < gpu.processors * kBlocks;
  return few || shared_bytes * kBlocks > gpu.shared_bytes ? 512 : 256;
}

// Bins first, so that a thread computes what the RoIs have in common once for several of them.
inline void plan_threads(const RoiWork& work, int most_threads, RoiPlan& plan) {
  const int64_t bin_lanes = even_round(work.bins, most_threads / kWarp);
  const int64_t most_warps = most_threads / kWarp / bin_lanes;
  const int64_t warps = even_round(count_rounds(work.rois, kWarp), most_warps);
  plan.roi_lanes = int(warps * kWarp);
  plan.threads = int(bin_lanes * plan.roi_lanes);
}

// For kernels that read planes of pixel_bytes per pixel. Shared memory has to be filled, which pays
// if the bins read as many pixels. It is filled at a 16-byte boundary like that of the plane.
inline RoiPlan plan_reading(const RoiWork& work, int64_t pixel_bytes, const RoiGpu& gpu) {
  RoiPlan plan{};
  const int64_t bytes = work.pixels * pixel_bytes + 16;
  const int64_t fills =
      work.rois * work.bins / std::max<int64_t>(work.pixels / work.reads_per_bin, 1);
  plan.planes = work.planes;
  plan.shared = bytes <= gpu.shared_bytes && fills > 0;
  plan.copies = plan.shared ? 1 : 0;
  plan.shared_bytes = plan.shared ? bytes : 0;
  const int64_t wanted = gpu.processors * 8;
  plan_threads(work, plan_most_threads(work, gpu, plan.shared_bytes), plan);
  plan.splits = std::min(count_rounds(work.rois, plan.roi_lanes),
                         count_rounds(wanted, std::max<int64_t>(work.planes, 1)));
  if (plan.shared) plan.splits = std::min(plan.splits, fills);
  plan.splits = std::max<int64_t>(plan.splits, 1);
  return plan;
}

// For kernels that add to planes of sum_bytes per pixel, each of which has one owner. In a fixed
// order: each warp adds to a copy of its own.
inline RoiPlan plan_adding(const RoiWork& work, int64_t sum_bytes, bool in_order,
                           const RoiGpu& gpu) {
  constexpr int64_t kMostCopies = 8;
  RoiPlan plan{};
  const int64_t bytes = work.pixels * sum_bytes;
  plan.planes = work.planes, plan.splits = 1;
  plan.shared = bytes <= gpu.shared_bytes;
  plan.copies = plan.shared ? 1 : 0;
  if (in_order) {
    // More copies than a quarter of the memory holds would leave processors without blocks.
    const int64_t fit = std::min(kMostCopies, gpu.shared_bytes / 4 / bytes);
    if (plan.shared) plan.copies = int(std::max<int64_t>(std::min(fit, work.rois), 1));
    plan.roi_lanes = kWarp;
    plan.threads = kWarp * std::max(plan.copies, 1);
  } else {
    plan_threads(work, plan_most_threads(work, gpu, plan.shared ? bytes : 0), plan);
  }
  plan.shared_bytes = plan.copies * bytes;
  return plan;
}

}  // namespace d2_deformable
