// Calls one kernel with the arguments in a file from emulator.py, and writes its results to a file.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>
#include <memory>
#include <string>

#include "cuda/launch.h"

namespace cuda_emulator {

// An array that a kernel reads or writes, in device memory of exactly this size.
template <typename T>
class Array {
 public:
  Array() = default;  // null
  explicit Array(int64_t size) : Array(size, std::numeric_limits<T>::quiet_NaN(), false) {}
  Array(int64_t size, T initial, bool written = true)
      : size_(size),
        memory_(new Memory("array " + std::to_string(Memory::count()), size * sizeof(T), written)) {
    std::fill_n(data(), size, initial);
  }

  explicit operator bool() const { return memory_ != nullptr; }
  T* data() const { return memory_ ? reinterpret_cast<T*>(memory_->data()) : nullptr; }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
  std::unique_ptr<Memory> memory_;
};

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
  void write(const Array<T>& values) {
    const size_t size = values.size();
    if (std::fwrite(values.data(), sizeof(T), size, file_) != size) {
      fail("cannot write results");
    }
  }

 private:
  std::FILE* file_;
};

// Reads the arguments in order; emulator.py has the other half of the format.
class Arguments {
 public:
  explicit Arguments(const char* path) : file_(path, "rb") {}

  int64_t integer() { return next<int64_t>(); }
  double real() { return next<double>(); }
  // Null for None.
  template <typename T>
  Array<T> array() {
    const int64_t size = integer();
    if (size < 0) return {};
    Array<T> values(size, T(0));
    file_.read(values.data(), size);
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

inline void check(cudaError_t error) {
  if (error != cudaSuccess) fail("the launch fails with error %d", int(error));
}
template <typename Kernel>
void launch_grid(const Kernel& kernel, const d2_deformable::Grid& grid) {
  check(d2_deformable::launch(kernel, grid, cudaStream_t()));
}

// Operator::run<scalar_t, acc_t>(kernel, arguments, results) picks a kernel by its name. The same
// launch runs once per seed, and its results are written one after another.
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
