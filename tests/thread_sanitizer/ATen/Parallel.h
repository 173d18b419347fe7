// at::parallel_for for the thread sanitizer (tools/sanitize.py), found before torch's own header.
//
// Torch's runs on OpenMP, whose library is compiled without the sanitizer: it does not see that
// threads wait for each other there, and would report races that are none. This one uses
// std::thread, which it knows. It ignores the grain, so that small tensors are shared among threads
// as well. D2_PLANT_RACE makes neighbouring threads work on the same index, which must be reported.
#pragma once

#define parallel_for openmp_parallel_for
#include_next <ATen/Parallel.h>
#undef parallel_for

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <thread>
#include <vector>

namespace at {

template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t /*grain_size*/, const F& f) {
  constexpr int64_t kThreads = 3;
  static const int64_t overlap = std::getenv("D2_PLANT_RACE") ? 1 : 0;
  const int64_t chunk = divup(end - begin, kThreads);
  std::vector<std::exception_ptr> errors(kThreads);
  std::vector<std::thread> threads;
  for (int64_t k = 0; k < kThreads && begin + k * chunk < end; ++k) {
    threads.emplace_back([&, k] {
      try {
        const int64_t first = begin + k * chunk;
        f(first, std::min(end, first + chunk + overlap));
      } catch (...) {
        errors[k] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace at
