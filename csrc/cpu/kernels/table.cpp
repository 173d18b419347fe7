// The table of CPU kernels for one instruction set.
#include "../kernels.h"

#include "transpose.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

template <typename T>
constexpr CpuKernels<T> kKernels{
    transpose<T>,
};

extern const CpuKernels<float> float_kernels;
extern const CpuKernels<double> double_kernels;
const CpuKernels<float> float_kernels = kKernels<float>;
const CpuKernels<double> double_kernels = kKernels<double>;

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
