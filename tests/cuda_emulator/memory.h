// The memory that kernels may reach, and who reached which byte of it.
//
// The kernels are compiled with -fsanitize=thread, which puts a call of a __tsan_ function before
// every read and write. These functions are our own (memory.cpp): they know the arrays of a launch,
// and its blocks and barriers, and so see what no order of the threads would show.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace cuda_emulator {

void print_place();  // of the running thread in the source

template <typename... Values>
[[noreturn]] void fail(const char* format, Values... values) {
  std::fprintf(stderr, "cuda_emulator: ");
  std::fprintf(stderr, format, values...);
  std::fprintf(stderr, "\n");
  print_place();
  std::abort();
}

// The thread that runs. Block -1: none, but the host's code.
struct Running {
  int block = -1, thread;
  int phase;  // how many barriers lie behind the block
  const char* stack_begin;
  const char* stack_end;
  const void* at;  // in its code
};
inline Running running;

enum class Use { kRead, kWrite, kAdd };

// The uses, of one kind, of one byte in one launch: who may not follow without a race.
class Users {
 public:
  bool race(const Running& now) const;
  void add(const Running& now);

 private:
  static constexpr int kNobody = -1, kSeveral = -2;
  int block_ = kNobody, phase_, thread_;
};

// An array, of as many bytes as a kernel was given and not one more.
class Memory {
 public:
  // written: by the host. What nobody has written, nobody may read.
  Memory(std::string name, size_t bytes, bool written);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() { return block_.get() + kMargin; }
  const char* data() const { return block_.get() + kMargin; }

  void use(const char* address, size_t bytes, Use use);

  // The memory that holds the address, or to which it is nearest.
  static Memory* find(const char* address);
  static void start_launch();
  static int count();

 private:
  static constexpr size_t kMargin = 1 << 16;  // to know whose bounds were meant
  struct Byte {
    bool written;
    Users users[3];  // by Use
  };

  std::string name_;
  size_t size_;
  std::unique_ptr<char[]> block_;
  std::vector<Byte> bytes_;
};

// The running thread's use of any address, at a place in its code; stops the process if it is
// wrong.
void use(const void* address, size_t bytes, Use use, const void* at);

}  // namespace cuda_emulator
