// Functions of csrc/cuda/plan.h and divisor.h for Python's ctypes.
#include "cuda/plan.h"

#include "cuda/divisor.h"

using namespace d2_deformable;

extern "C" {

// bytes per chunk, rows of cuBLAS, threads per block, packs per lane
void constants(int64_t* out) {
  out[0] = kColumnBytes, out[1] = kGemmRows, out[2] = kLaunchThreads, out[3] = kPacksPerLane;
}

// number and size of the chunks
void chunks(int64_t rows, int64_t row_bytes, int64_t* out) {
  const Chunks plan = plan_chunks(rows, row_bytes);
  out[0] = plan.count(), out[1] = plan.size;
}

// first row and length of one chunk
void chunk(int64_t rows, int64_t row_bytes, int64_t k, int64_t* out) {
  const Chunks plan = plan_chunks(rows, row_bytes);
  out[0] = plan.first(k), out[1] = plan.length(k);
}

// lanes per unit and number of blocks
void units(int64_t count, int64_t packs, int64_t* out) {
  out[0] = plan_lanes(packs), out[1] = plan_blocks(count, int(out[0]));
}

// quotient and remainder
void divide(int64_t dividend, int64_t divisor, int64_t* out) {
  const Division division = Divisor(divisor).divide(uint32_t(dividend));
  out[0] = division.quotient, out[1] = division.remainder;
}
}
