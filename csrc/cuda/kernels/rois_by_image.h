// Lists the RoIs of each image: a block that owns a plane then visits the RoIs of its image alone.
#pragma once

#include "../../geometry/roi.h"
#include "../simt.h"

namespace d2_deformable {

// One block lists the RoIs of one image in their order in `rois`; block 0 also closes the table
// `first`. Each thread reads a range of all RoIs twice: it counts, then it writes where the counts
// of the threads before it lead. Every place of the lists has one writer.
template <typename acc_t>
struct RoisByImageKernel {
  int64_t images, count;
  const acc_t* rois;  // [R][5]
  int64_t* first;     // [N + 1], of an image's RoIs in `order`
  int64_t* order;     // [R], indices of RoIs, image after image

  static int64_t shared_bytes(int threads) { return 2 * threads * int64_t(sizeof(int64_t)); }

  D2_DEVICE void operator()() const {
    D2_SHARED(int64_t, earlier);  // [threads]: RoIs of images before this one, in a thread's range
    int64_t* own = earlier + blockDim.x;  // [threads]: RoIs of this image
    const int64_t range = (count + blockDim.x - 1) / blockDim.x;
    const int64_t begin = range * threadIdx.x;
    const int64_t end = begin + range < count ? begin + range : count;
    for (int64_t image = blockIdx.x; image < images; image += gridDim.x) {
      int64_t before = 0, mine = 0;
      for (int64_t roi = begin; roi < end; ++roi) {
        const int64_t index = image_of(rois + roi * 5, images);
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
        if (image_of(rois + roi * 5, images) == image) order[place++] = roi;
      }
      __syncthreads();  // before the next image's counts
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) first[images] = count;
  }
};

}  // namespace d2_deformable
