#include "driver.h"
#include "row_sums_kernels.h"

namespace cuda_emulator {

struct RowSums {
  template <typename scalar_t, typename acc_t>
  static void run(const std::string&, Arguments& in, File& out) {
    const int64_t rows = in.integer(), columns = in.integer();
    const auto matrix = in.array<scalar_t>();
    const Array<scalar_t> copy(rows * columns);
    const Array<acc_t> sums(rows), total(1, 0);
    const Array<float> totals(4, 0);
    const d2_deformable::RowSumsKernel<scalar_t, acc_t> kernel{
        rows, columns, matrix.data(), copy.data(), sums.data(), total.data(), totals.data()};
    launch_grid(kernel, kernel.grid());
    out.write(copy), out.write(sums), out.write(total), out.write(totals);
  }
};

}  // namespace cuda_emulator

int main(int argc, char** argv) { return cuda_emulator::main<cuda_emulator::RowSums>(argc, argv); }
