// Plans how a call is cut into chunks of rows and into launches. Pure functions of sizes, free of
// ATen and CUDA, so that tests/cuda_emulator/test_plan.py can test them with any sizes.
#pragma once

#include <algorithm>
#include <cstdint>

namespace d2_deformable {

// Limit of the columns that are in memory at once (but at least one row), whatever the batch size:
// small enough to stay in the L2 cache between the kernel that writes them and the matrix multiply
// that reads them.
constexpr int64_t kColumnBytes = 32 << 20;
// Rows that a block of cuBLAS computes. Chunks are multiples of it if the limit above allows.
constexpr int64_t kGemmRows = 128;
constexpr int kLaunchThreads = 256;
// Packs of channels that a lane takes before more lanes are used: a lane computes the sampling
// point once for all of its packs.
constexpr int kPacksPerLane = 4;
// Up to so many lanes, each takes one pack: four packs of 16 bytes are two whole cache sectors.
constexpr int kFewLanes = 4;
constexpr int kWarp = 32;

constexpr int64_t ceil_div(int64_t value, int64_t by) { return value / by + (value % by != 0); }

// All rows (output positions of all images), cut into chunks of `size`. The last may be smaller.
struct Chunks {
  int64_t rows, size;

  int64_t count() const { return ceil_div(rows, size); }
  int64_t first(int64_t chunk) const { return chunk * size; }
  int64_t length(int64_t chunk) const { return std::min(size, rows - first(chunk)); }
};

// Chunks of about equal size, as few as `bytes` allow.
inline Chunks plan_chunks(int64_t rows, int64_t row_bytes, int64_t bytes = kColumnBytes) {
  const int64_t most = std::max<int64_t>(bytes / row_bytes, 1);
  if (rows <= most) return {rows, std::max<int64_t>(rows, 1)};
  const int64_t multiple = most < kGemmRows ? 1 : kGemmRows;
  const int64_t largest = most / multiple * multiple;
  return {rows, ceil_div(ceil_div(rows, ceil_div(rows, largest)), multiple) * multiple};
}

// Number of neighbouring lanes of a warp that share so many packs of channels; a power of two.
inline int plan_lanes(int64_t packs) {
  int lanes = 1;
  while (lanes < kWarp && packs > int64_t(lanes) * (lanes < kFewLanes ? 1 : kPacksPerLane)) {
    lanes *= 2;
  }
  return lanes;
}

// Blocks of kLaunchThreads threads for `count` units or owners, on each of which `lanes` threads
// work.
inline int64_t plan_blocks(int64_t count, int lanes) {
  return ceil_div(count, kLaunchThreads / lanes);
}

}  // namespace d2_deformable
