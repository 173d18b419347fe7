#include "memory.h"

#include <unistd.h>

#include <map>

extern const char __executable_start, end;  // of the program, defined by the linker

namespace cuda_emulator {

bool Users::race(const Running& now) const {
  if (block_ == kNobody) return false;
  return block_ != now.block || (phase_ == now.phase && thread_ != now.thread);
}

void Users::add(const Running& now) {
  if (block_ == kNobody || (block_ == now.block && phase_ != now.phase)) {
    block_ = now.block, phase_ = now.phase, thread_ = now.thread;
  } else if (block_ != now.block) {
    block_ = kSeveral;
  } else if (thread_ != now.thread) {
    thread_ = kSeveral;
  }
}

namespace {
std::map<const char*, Memory*> memories;  // by the beginning of their margins
constexpr const char* kVerbs[] = {"reads", "writes", "adds to"};
constexpr const char* kOthers[] = {"another has read", "another has written",
                                   "another has added to"};
}  // namespace

void print_place() {
  if (running.block < 0 || running.at == nullptr) return;
  char command[100];
  std::snprintf(command, sizeof(command), "addr2line -Cfipse /proc/%d/exe %p >&2", int(getpid()),
                static_cast<const char*>(running.at) - 1);
  if (std::system(command) != 0) std::fprintf(stderr, "at %p\n", running.at);
}

Memory::Memory(std::string name, size_t bytes, bool written)
    : name_(std::move(name)),
      size_(bytes),
      block_(new char[bytes + 2 * kMargin]),
      bytes_(bytes, {written, {}}) {
  memories[block_.get()] = this;
}

Memory::~Memory() { memories.erase(block_.get()); }

int Memory::count() { return memories.size(); }

Memory* Memory::find(const char* address) {
  auto next = memories.upper_bound(address);
  if (next == memories.begin()) return nullptr;
  Memory* memory = std::prev(next)->second;
  return address < memory->data() + memory->size_ + kMargin ? memory : nullptr;
}

void Memory::start_launch() {
  for (auto& [_, memory] : memories) {
    for (Byte& byte : memory->bytes_) byte = {byte.written, {}};
  }
}

void Memory::use(const char* address, size_t bytes, Use use) {
  const ptrdiff_t begin = address - data();
  const auto stop = [&](const char* what, const char* others) {
    fail("%s: thread %d of block %d %s bytes %td to %td of %s, which %s", what, running.thread,
         running.block, kVerbs[int(use)], begin, begin + ptrdiff_t(bytes) - 1, name_.c_str(),
         others);
  };
  if (begin < 0 || begin + bytes > size_) stop("out of bounds", "has fewer");
  for (size_t k = begin; k < begin + bytes; ++k) {
    Byte& byte = bytes_[k];
    for (const Use other : {Use::kRead, Use::kWrite, Use::kAdd}) {
      const bool peaceful = use == other && use != Use::kWrite;
      if (!peaceful && byte.users[int(other)].race(running)) stop("race", kOthers[int(other)]);
    }
    if (use != Use::kWrite && !byte.written) stop("not initialised", "nobody has written");
    byte.written = true;
    byte.users[int(use)].add(running);
  }
}

void use(const void* address, size_t bytes, Use use, const void* at) {
  if (running.block < 0) return;
  running.at = at;
  const char* begin = static_cast<const char*>(address);
  if (begin >= running.stack_begin && begin + bytes <= running.stack_end) return;
  if (Memory* memory = Memory::find(begin)) return memory->use(begin, bytes, use);
  const bool constant = begin >= &__executable_start && begin + bytes <= &end;
  if (use == Use::kRead && constant) return;
  fail("out of bounds: thread %d of block %d %s %p, outside of every array", running.thread,
       running.block, kVerbs[int(use)], address);
}

}  // namespace cuda_emulator

// The functions that compiled kernels call.
#define D2_USE(address, bytes, kind) \
  cuda_emulator::use(address, bytes, cuda_emulator::Use::kind, __builtin_return_address(0))
extern "C" {
#define D2_HOOKS(bytes)                                                     \
  void __tsan_read##bytes(void* address) { D2_USE(address, bytes, kRead); } \
  void __tsan_write##bytes(void* address) { D2_USE(address, bytes, kWrite); }
D2_HOOKS(1)
D2_HOOKS(2)
D2_HOOKS(4)
D2_HOOKS(8)
D2_HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) { D2_USE(address, bytes, kRead); }
void __tsan_write_range(void* address, size_t bytes) { D2_USE(address, bytes, kWrite); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
