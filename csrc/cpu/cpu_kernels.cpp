#include "cpu_kernels.h"

#include <ATen/Version.h>

#include <string>

namespace d2_deformable {

// Defined by kernels/cpu_kernel_table.cpp, which is compiled once per instruction set.
namespace baseline {
extern const CpuKernels<float> float_kernels;
extern const CpuKernels<double> double_kernels;
}  // namespace baseline
#if defined(__x86_64__)
namespace avx2 {
extern const CpuKernels<float> float_kernels;
extern const CpuKernels<double> double_kernels;
}  // namespace avx2
namespace avx512 {
extern const CpuKernels<float> float_kernels;
extern const CpuKernels<double> double_kernels;
}  // namespace avx512
#endif

namespace {

struct Tables {
  const CpuKernels<float>* of_float;
  const CpuKernels<double>* of_double;
};

Tables choose() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return {&avx512::float_kernels, &avx512::double_kernels};
  if (capability == "AVX2") return {&avx2::float_kernels, &avx2::double_kernels};
#endif
  return {&baseline::float_kernels, &baseline::double_kernels};
}

const Tables& tables() {
  static const Tables chosen = choose();
  return chosen;
}

}  // namespace

template <>
const CpuKernels<float>& cpu_kernels<float>() {
  return *tables().of_float;
}
template <>
const CpuKernels<double>& cpu_kernels<double>() {
  return *tables().of_double;
}

}  // namespace d2_deformable
