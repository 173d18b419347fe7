// How the kernels of the RoI operators share out their work: a pure function of sizes, free of ATen
// and of CUDA, so that tests/cuda_emulator/test_roi_plan.py can ask it about any sizes.
//
// A plane is the map of one channel of one image: H x W neighbours in memory. A block has a plane
// (and, if it only reads, maybe one of several splits of the RoIs) in shared memory, if it fits.
// Its threads are a table of roi_lanes columns: a row takes a bin, a column a RoI.
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
  int64_t reads_per_bin;  // pixels, roughly
};

struct RoiGpu {
  int64_t processors;
  int64_t shared_bytes;  // at most, for one block
};

struct RoiPlan {
  int64_t planes;
  Divisor splits;     // pieces of work per plane: blocks go from piece to piece
  int threads;        // of a block, a multiple of roi_lanes
  Divisor roi_lanes;  // a multiple of a warp: what depends on the bin alone is alike in a warp
  bool shared;        // the plane is in shared memory, else it stays where it is
  int copies;         // of the plane in shared memory
  int64_t shared_bytes;

  D2_HOST_DEVICE int64_t pieces() const { return planes * splits.divisor(); }
};

// Pieces per round if they are shared out evenly among as few rounds of at most `most` as possible.
inline int64_t even_round(int64_t pieces, int64_t most) {
  return std::max<int64_t>(ceil_div(pieces, std::max<int64_t>(ceil_div(pieces, most), 1)), 1);
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
  const int64_t warps = even_round(ceil_div(work.rois, kWarp), most_warps);
  plan.roi_lanes = Divisor(warps * kWarp);
  plan.threads = int(bin_lanes * warps * kWarp);
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
  // float64 takes twice the registers.
  plan_threads(work, pixel_bytes == 8 ? 256 : plan_most_threads(work, gpu, plan.shared_bytes),
               plan);
  const int64_t wanted = ceil_div(gpu.processors * 8, std::max<int64_t>(work.planes, 1));
  const int64_t splits = std::min(ceil_div(work.rois, plan.roi_lanes.divisor()), wanted);
  plan.splits = Divisor(std::max<int64_t>(plan.shared ? std::min(splits, fills) : splits, 1));
  return plan;
}

// For kernels that add to planes of sum_bytes per pixel, each of which has one owner. In a fixed
// order: each warp adds to a copy of its own.
inline RoiPlan plan_adding(const RoiWork& work, int64_t sum_bytes, bool in_order,
                           const RoiGpu& gpu) {
  constexpr int64_t kMostCopies = 8;
  RoiPlan plan{};
  const int64_t bytes = work.pixels * sum_bytes;
  plan.planes = work.planes;
  plan.shared = bytes <= gpu.shared_bytes;
  plan.copies = plan.shared ? 1 : 0;
  if (in_order) {
    // More copies than a quarter of the memory holds would leave processors without blocks.
    const int64_t fit = std::min(kMostCopies, gpu.shared_bytes / 4 / bytes);
    if (plan.shared) plan.copies = int(std::max<int64_t>(std::min(fit, work.rois), 1));
    plan.roi_lanes = Divisor(kWarp);
    plan.threads = kWarp * std::max(plan.copies, 1);
  } else {
    plan_threads(work, plan_most_threads(work, gpu, plan.shared ? bytes : 0), plan);
  }
  plan.shared_bytes = plan.copies * bytes;
  return plan;
}

}  // namespace d2_deformable
