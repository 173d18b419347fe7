// Runs a grid on the CPU, one block after another. Each thread of a block is a fiber, which yields
// where it waits for others.
#include <ucontext.h>

#include <numeric>
#include <optional>
#include <random>

#include "cuda_runtime.h"

namespace cuda_emulator {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;

struct Fiber {
  enum State { kReady, kAtBarrier, kInWarp, kDone };

  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state;
  int line;        // source line of its barrier or exchange
  unsigned lanes;  // lanes that take part in the exchange
  int source;      // lane whose value it reads
  uint64_t value;
};
std::vector<Fiber> fibers;
ucontext_t scheduler;
std::optional<Memory> shared;
Call call_kernel;
Kernel kernel;
void** arguments;

void run_thread() {
  call_kernel(kernel, arguments);
  fibers[running.thread].state = Fiber::kDone;
}

void resume(int thread) {
  const char* stack = fibers[thread].stack.get();
  running.thread = thread, running.stack_begin = stack, running.stack_end = stack + kStackBytes;
  threadIdx = {unsigned(thread), 0, 0};
  swapcontext(&scheduler, &fibers[thread].context);
}

void wait(Fiber::State state, int line) {
  Fiber& fiber = fibers[running.thread];
  fiber.state = state, fiber.line = line;
  swapcontext(&fiber.context, &scheduler);
}

// Lets all threads pass the barrier that they wait at; fails on a deadlock.
void pass_barrier() {
  const Fiber& first = fibers[0];
  for (size_t k = 0; k < fibers.size(); ++k) {
    if (fibers[k].state == first.state && fibers[k].line == first.line) continue;
    fail("deadlock: thread 0 of block %d %s line %d, thread %zu %s line %d", running.block,
         first.state == Fiber::kDone ? "has ended after" : "waits at", first.line, k,
         fibers[k].state == Fiber::kDone ? "has ended after" : "waits at", fibers[k].line);
  }
  ++running.phase;
  for (Fiber& fiber : fibers) fiber.state = Fiber::kReady;
}

void run_block(int block, const std::vector<int>& order) {
  running = {block};
  blockIdx = {unsigned(block), 0, 0};
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, kStackBytes};
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, run_thread, 0);
    fiber.state = Fiber::kReady, fiber.line = 0;
  }
  for (size_t done = 0; done < fibers.size();) {
    bool waiting = true;
    done = 0;
    for (const int thread : order) {
      if (fibers[thread].state == Fiber::kReady) resume(thread), waiting = false;
      done += fibers[thread].state == Fiber::kDone;
    }
    if (waiting) pass_barrier();
  }
  running = {};
}

std::vector<int> shuffled(int size, std::mt19937& random) {
  std::vector<int> order(size);
  std::iota(order.begin(), order.end(), 0);
  if (seed != 0) std::shuffle(order.begin(), order.end(), random);
  return order;
}

}  // namespace

void* shared_memory() { return shared->data(); }

void barrier(int line) { wait(Fiber::kAtBarrier, line); }

uint64_t exchange(unsigned lanes, uint64_t value, int source, int line) {
  const int warp = running.thread / kWarp * kWarp, lane = running.thread % kWarp;
  const auto in_lanes = [&](int k) { return k >= 0 && k < kWarp && (lanes >> k & 1); };
  if (!in_lanes(lane) || !in_lanes(source)) {
    fail("shuffle: lane %d reads lane %d at line %d, with the mask %x", lane, source, line, lanes);
  }
  Fiber& own = fibers[running.thread];
  own.state = Fiber::kInWarp, own.line = line;
  own.lanes = lanes, own.source = source, own.value = value;
  bool complete = true;
  for (int k = 0; k < kWarp; ++k) {
    if (!in_lanes(k)) continue;
    if (warp + k >= int(fibers.size()) || fibers[warp + k].state == Fiber::kDone) {
      fail("shuffle: lane %d waits at line %d for lane %d, which has ended", lane, line, k);
    }
    const Fiber& other = fibers[warp + k];
    complete &= other.state == Fiber::kInWarp && other.lanes == lanes && other.line == line;
  }
  if (complete) {
    uint64_t values[kWarp];
    for (int k = 0; k < kWarp; ++k) values[k] = in_lanes(k) ? fibers[warp + k].value : 0;
    for (int k = 0; k < kWarp; ++k) {
      if (!in_lanes(k)) continue;
      fibers[warp + k].value = values[fibers[warp + k].source];
      fibers[warp + k].state = Fiber::kReady;
    }
  }
  wait(own.state, line);
  return own.value;
}

cudaError_t run_grid(dim3 grid, dim3 block, size_t shared_bytes, Call call, Kernel which,
                     void** given) {
  if (grid.x == 0 || block.x == 0 || block.x > 1024) return cudaErrorInvalidConfiguration;
  if (grid.y * grid.z * block.y * block.z != 1) fail("only grids of one dimension run here");
  if (seed != 0) grid.x = std::min(grid.x, seed);
  call_kernel = call, kernel = which, arguments = given;
  gridDim = grid, blockDim = block;
  fibers = std::vector<Fiber>(block.x);
  Memory::start_launch();
  std::mt19937 random(seed);
  for (const int k : shuffled(grid.x, random)) {
    shared.emplace("shared memory", shared_bytes, false);
    run_block(k, shuffled(block.x, random));
    shared.reset();
  }
  return cudaSuccess;
}

}  // namespace cuda_emulator
