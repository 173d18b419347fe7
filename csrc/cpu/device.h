// How kernel functors run on the CPU.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "../geometry/roi.h"
#include "../kernels/channels.h"

namespace d2_deformable {

// cuda/device.h has the same members: the operators' host code is written for either.
struct Cpu {
  using Add = PlainAdd;

  // Size of the buffer for columns, whatever the batch (but at least one row).
  static constexpr int64_t kColumnBytes = 8 << 20;
  // Channels per block where no block writes what another does: as many as there are.
  static constexpr int64_t kLongBlock = INT64_MAX;
  // Else long enough to hide the work per block, short enough to leave some blocks to each thread.
  // A constant, because results must not depend on the number of threads.
  static constexpr int64_t kBlock = 64;

  // Half precision is for memory and tensor cores: here products of float16 matrices are many times
  // slower than those of float32.
  static at::ScalarType compute_type(at::ScalarType type) { return at::toOpMathType(type); }

  // Calls run with a number of the C++ type that compute_type() names.
  template <typename Run>
  static void dispatch(at::ScalarType type, const Run& run) {
    AT_DISPATCH_FLOATING_TYPES(type, "d2_deformable on the CPU", [&] { run(scalar_t()); });
  }

  static void alert_not_deterministic(const char*) {}

  // Calls kernel(i) for 0 <= i < count, in any order, at the same time where there is enough to do:
  // `cost` is what one call costs, roughly, in multiply-adds.
  template <typename Kernel>
  static void run(const Kernel& kernel, int64_t count, int64_t cost) {
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(cost, 1));
    at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernel(i);
    });
  }

  // The same for kernels that add to common places: here one thread owns one block of channels of
  // one image (and, of RoIs, one group of bins). No two threads add to the same place, and each
  // place is added to in the order of the rows or RoIs, whatever the number of threads.
  template <typename Kernel>
  static void run_adding_rows(const Kernel& kernel, int64_t cost) {
    const auto& s = kernel.sizes;
    const auto& rows = kernel.rows;
    const int64_t blocks = kernel.blocks.count();
    const int64_t first_image = rows.first / s.image_rows();
    const int64_t images = (rows.first + rows.count - 1) / s.image_rows() - first_image + 1;
    const auto run_item = [&](int64_t item) {
      const int64_t image = first_image + item / blocks, block = item % blocks;
      const int64_t begin = std::max<int64_t>(image * s.image_rows() - rows.first, 0);
      const int64_t end = std::min((image + 1) * s.image_rows() - rows.first, rows.count);
      for (int64_t row_tap = begin * s.taps(); row_tap < end * s.taps(); ++row_tap) {
        kernel(row_tap * blocks + block);
      }
    };
    const int64_t items = images * blocks;
    run(run_item, items, kernel.count() * cost / items);
  }

  // Bins fall into groups_h x groups_w groups.
  template <typename Kernel>
  static void run_adding_bins(const Kernel& kernel, int64_t groups_h, int64_t groups_w,
                              int64_t cost) {
    const auto& s = kernel.sizes;
    const int64_t blocks = kernel.blocks.count();
    const auto run_item = [&](int64_t item) {
      const int64_t block = item % blocks, group = item / blocks;
      const int64_t image = group / (groups_h * groups_w);
      const BinRange bins_y(group / groups_w % groups_h, groups_h, s.bins_h);
      const BinRange bins_x(group % groups_w, groups_w, s.bins_w);
      for (int64_t roi = 0; roi < s.rois; ++roi) {
        if (int64_t(kernel.rois[roi * 5]) != image) continue;
        for (int64_t y = bins_y.begin; y < bins_y.end; ++y) {
          for (int64_t x = bins_x.begin; x < bins_x.end; ++x) {
            kernel(((roi * s.bins_h + y) * s.bins_w + x) * blocks + block);
          }
        }
      }
    };
    const int64_t items = s.images * groups_h * groups_w * blocks;
    run(run_item, items, kernel.count() * cost / std::max<int64_t>(items, 1));
  }

  // Every image index must be one of 0 .. images - 1; NaN and fractions are not.
  template <typename T>
  static void check_image_indices(const char* op, const T* rois, int64_t count, int64_t images) {
    for (int64_t r = 0; r < count; ++r) {
      const T index = rois[r * 5];
      TORCH_CHECK(is_image_index(index, images), op, ": rois[", r, "] names image ", index,
                  ", but input holds ", images, " images");
    }
  }
};

}  // namespace d2_deformable
