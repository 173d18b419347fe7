// How a call is cut into chunks of rows and into launches: pure functions of sizes, free of ATen
// and CUDA, so that tests/cuda_emulator/test_plan.py can ask them about any sizes.
#pragma once

#include <algorithm>
#include <cstdint>

namespace d2_deformable {

// Of the columns that are in memory at one time, whatever the batch (but at least one row): small
// enough to stay in the L2 cache between the kernel that writes them and the product that reads
// them.
constexpr int64_t kColumnBytes = 32 << 20;
// Rows of a tile of cuBLAS: chunks are multiples of it, as far as their bytes allow.
constexpr int64_t kTileRows = 128;
constexpr int kLaunchThreads = 256;
// Packs of channels per lane, before one more lane is taken: a lane computes the sampling point
// once for all of its packs.
constexpr int kPacksPerLane = 4;
// Four packs of 16 bytes are two whole sectors of the cache.
constexpr int kFewLanes = 4;
constexpr int kWarp = 32;

constexpr int64_t ceil_div(int64_t value, int64_t by) { return value / by + (value % by != 0); }

// All rows (output positions of all images together), in chunks of `size` but for the last.
struct Chunks {
  int64_t rows, size;

  int64_t count() const { return ceil_div(rows, size); }
  int64_t first(int64_t chunk) const { return chunk * size; }
  int64_t length(int64_t chunk) const { return std::min(size, rows - first(chunk)); }
};

// Chunks of about the same size, as few as the bytes allow.
inline Chunks plan_chunks(int64_t rows, int64_t row_bytes, int64_t bytes = kColumnBytes) {
  const int64_t most = std::max<int64_t>(bytes / row_bytes, 1);
  if (rows <= most) return {rows, std::max<int64_t>(rows, 1)};
  const int64_t unit = most < kTileRows ? 1 : kTileRows;
  const int64_t largest = most / unit * unit;
  return {rows, ceil_div(ceil_div(rows, ceil_div(rows, largest)), unit) * unit};
}

// The channels of a unit (a sampling point) are shared by `lanes` neighbouring lanes of a warp, a
// power of two.
inline int plan_lanes(int64_t packs) {
  int lanes = 1;
  while (lanes < kWarp && packs > int64_t(lanes) * (lanes < kFewLanes ? 1 : kPacksPerLane)) {
    lanes *= 2;
  }
  return lanes;
}

// Blocks of kLaunchThreads for `units` pieces of work of `lanes` threads each.
inline int64_t plan_blocks(int64_t units, int lanes) {
  return ceil_div(units, kLaunchThreads / lanes);
}

}  // namespace d2_deformable
