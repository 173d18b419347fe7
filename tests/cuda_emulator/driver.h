// Calls one kernel with what emulator.py wrote into a file, and writes its results into another.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <memory>
#include <string>

#include "cuda/launch.h"

namespace cuda_emulator {

class File {
 public:
  File(const char* path, const char* mode) : file_(std::fopen(path, mode)) {
    if (!file_) fail("cannot open %s", path);
  }
  ~File() { std::fclose(file_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  template <typename T>
  void read(T* values, size_t count) {
    if (std::fread(values, sizeof(T), count, file_) != count) fail("the arguments end too early");
  }
  template <typename T>
  void write(const std::vector<T>& values) {
    if (std::fwrite(values.data(), sizeof(T), values.size(), file_) != values.size()) {
      fail("cannot write results");
    }
  }

 private:
  std::FILE* file_;
};

// The arguments in their order; emulator.py holds the other half of the format.
class Arguments {
 public:
  explicit Arguments(const char* path) : file_(path, "rb") {}

  int64_t integer() { return next<int64_t>(); }
  double real() { return next<double>(); }
  // In memory of its own, of just this size; null for None.
  template <typename T>
  std::unique_ptr<T[]> array() {
    const int64_t size = integer();
    if (size < 0) return nullptr;
    std::unique_ptr<T[]> values(new T[size]);
    file_.read(values.get(), size);
    return values;
  }

 private:
  template <typename T>
  T next() {
    T value;
    file_.read(&value, 1);
    return value;
  }

  File file_;
};

template <typename Kernel>
void launch_all(const Kernel& kernel) {
  const cudaError_t error = d2_deformable::launch(kernel, kernel.count(), cudaStream_t());
  if (error != cudaSuccess) fail("the launch fails with error %d", int(error));
}

// Operator::run<scalar_t, acc_t>(kernel, arguments, results) picks a kernel by its name. The same
// launch runs for each seed, and its results follow one another.
template <typename Operator>
int main(int argc, char** argv) {
  if (argc != 6) fail("usage: %s kernel dtype arguments results seeds", argv[0]);
  const std::string kernel = argv[1], dtype = argv[2];
  File results(argv[4], "wb");
  const unsigned seeds = std::atoi(argv[5]);
  for (seed = 0; seed < seeds; ++seed) {
    Arguments arguments(argv[3]);
    if (dtype == "float64") {
      Operator::template run<double, double>(kernel, arguments, results);
    } else if (dtype == "float32") {
      Operator::template run<float, float>(kernel, arguments, results);
    } else if (dtype == "float16") {
      Operator::template run<c10::Half, float>(kernel, arguments, results);
    } else if (dtype == "bfloat16") {
      Operator::template run<c10::BFloat16, float>(kernel, arguments, results);
    } else {
      fail("there is no dtype %s", argv[2]);
    }
  }
  return 0;
}

}  // namespace cuda_emulator
