// Replaces memory.cpp where kernels run on tensors; nothing checks the memory that they use.
#include "memory.h"

namespace cuda_emulator {

void print_place() {}
void use(const void*, size_t, Use, const void*) {}

Memory::Memory(std::string, size_t bytes, bool) : block_(new char[bytes + 2 * kMargin]) {}
Memory::~Memory() = default;
void Memory::start_launch() {}

}  // namespace cuda_emulator
