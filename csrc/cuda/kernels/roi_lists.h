// Lists the RoIs of each image, so that a block that owns a plane visits only those of its image.
#pragma once

#include "../../geometry/roi.h"
#include "../simt.h"

namespace d2_deformable {

// Bins: where the bins of a RoI lie (geometry/<op>_geometry.h), the same for all channels.
template <typename Bins>
struct ListedRoi {
  int64_t index;
  Bins bins;
};

template <typename Bins>
struct RoiLists {
  const int64_t* first;         // [N + 1], index of an image's first RoI in `rois`
  const ListedRoi<Bins>* rois;  // [R], image after image
};

// One block lists the RoIs of one image in the given order; block 0 also writes the end of `first`.
// Each thread reads a range of all RoIs twice. First it counts; then it writes, starting after what
// the threads before it have counted. One thread writes each element of the lists. A RoI that names
// no image stops the kernel.
template <typename acc_t, typename Bins, typename Sizes>
struct RoiListsKernel {
  Sizes sizes;
  const acc_t* rois;       // [R][5]
  int64_t* first;          // [N + 1]
  ListedRoi<Bins>* lists;  // [R]

  static constexpr int64_t shared_bytes(int threads) {
    return 2 * threads * int64_t(sizeof(int64_t));
  }

  D2_DEVICE void operator()() const {
    D2_SHARED(int64_t, earlier);  // [threads]: RoIs of images before this one, in a thread's range
    int64_t* own = earlier + blockDim.x;  // [threads]: RoIs of this image
    const int64_t range = (sizes.rois + blockDim.x - 1) / blockDim.x;
    const int64_t begin = range * threadIdx.x;
    const int64_t end = begin + range < sizes.rois ? begin + range : sizes.rois;
    for (int64_t image = blockIdx.x; image < sizes.images; image += gridDim.x) {
      int64_t before = 0, mine = 0;
      for (int64_t roi = begin; roi < end; ++roi) {
        const int64_t index = image_of(rois + roi * 5, sizes.images);
        before += index < image ? 1 : 0;
        mine += index == image ? 1 : 0;
      }
      earlier[threadIdx.x] = before;
      own[threadIdx.x] = mine;
      __syncthreads();
      int64_t list = 0, place = 0;
      for (unsigned thread = 0; thread < blockDim.x; ++thread) {
        list += earlier[thread];
        if (thread < threadIdx.x) place += own[thread];
      }
      place += list;
      if (threadIdx.x == 0) first[image] = list;
      for (int64_t roi = begin; roi < end; ++roi) {
        if (image_of(rois + roi * 5, sizes.images) != image) continue;
        lists[place++] = {roi, Bins(sizes, rois, roi)};
      }
      __syncthreads();  // before the next image's counts
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) first[sizes.images] = sizes.rois;
  }
};

}  // namespace d2_deformable
