// The memory that kernels may use, and which thread used which byte of it.
//
// The kernels are compiled with -fsanitize=thread, which puts a call of a __tsan_ function before
// every read and write. These functions are our own (memory.cpp). They know the arrays of a launch,
// its blocks and its barriers, and so find races that no order of the threads would show.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace cuda_emulator {

void print_place();  // prints the running thread's place in the source

template <typename... Values>
[[noreturn]] void fail(const char* format, Values... values) {
  std::fprintf(stderr, "cuda_emulator: ");
  std::fprintf(stderr, format, values...);
  std::fprintf(stderr, "\n");
  print_place();
  std::abort();
}

// The running thread. Block -1: the host's code.
struct Running {
  int block = -1, thread;
  int phase;  // number of barriers that the block has passed
  const char* stack_begin;
  const char* stack_end;
  const void* at;  // place in its code
};
inline Running running;

enum class Use { kRead, kWrite, kAdd };

// The uses of one kind of one byte in one launch; decides whether another use is a race.
class Users {
 public:
  bool race(const Running& now) const;
  void add(const Running& now);

 private:
  static constexpr int kNobody = -1, kSeveral = -2;
  int block_ = kNobody, phase_, thread_;
};

// An array of exactly as many bytes as a kernel was given.
class Memory {
 public:
  // written: the host has written it. Reading a byte that nobody has written is an error.
  Memory(std::string name, size_t bytes, bool written);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() { return block_.get() + kMargin; }
  const char* data() const { return block_.get() + kMargin; }

  void use(const char* address, size_t bytes, Use use);

  // The memory that holds the address, or the nearest one.
  static Memory* find(const char* address);
  static void start_launch();
  static int count();

 private:
  static constexpr size_t kMargin = 1 << 16;  // tells whose bounds were exceeded
  struct Byte {
    bool written;
    Users users[3];  // by Use
  };

  std::string name_;
  size_t size_;
  std::unique_ptr<char[]> block_;
  std::vector<Byte> bytes_;
};

// Checks the running thread's use of an address at a place in its code; stops the process if it is
// wrong.
void use(const void* address, size_t bytes, Use use, const void* at);

}  // namespace cuda_emulator
