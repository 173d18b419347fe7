// What the CPU operators call of kernels/: a table of functions for each instruction set. Free of
// ATen, as the kernels are.
#pragma once

#include <cstdint>

namespace d2_deformable {

template <typename T>
struct CpuKernels {
  // kernels/transpose.h
  void (*transpose)(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows,
                    int64_t columns);
};

// For the best instruction set that the machine has, and that ATEN_CPU_CAPABILITY (default, avx2
// or avx512) allows, as everywhere in PyTorch. T is float or double.
template <typename T>
const CpuKernels<T>& cpu_kernels();

}  // namespace d2_deformable
