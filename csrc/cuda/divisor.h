// Division by a number that is known on the host. A GPU has no instruction for integer division,
// and every thread divides its index several times.
#pragma once

#include <cstdint>

#include "../geometry/sampling.h"

namespace d2_deformable {

struct Division {
  uint32_t quotient, remainder;
};

// Dividends from 0 and divisors from 1, both up to 2^31 - 1. With 2^(shift - 1) < divisor <=
// 2^shift and factor = 1 + floor(2^32 * (2^shift - divisor) / divisor), the quotient is (dividend *
// (2^32 + factor)) / 2^(32 + shift): Granlund and Montgomery, "Division by invariant integers using
// multiplication", 1994, section 4.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t divisor) : divisor_(uint32_t(divisor)) {
    while ((int64_t(1) << shift_) < divisor) ++shift_;
    factor_ = uint32_t(((uint64_t(1) << 32) * ((uint64_t(1) << shift_) - divisor_)) / divisor_ + 1);
  }

  D2_HOST_DEVICE uint32_t divisor() const { return divisor_; }

  D2_HOST_DEVICE uint32_t quotient(uint32_t dividend) const {
    const uint32_t high = uint32_t((uint64_t(dividend) * factor_) >> 32);
    return (high + dividend) >> shift_;
  }
  D2_HOST_DEVICE Division divide(uint32_t dividend) const {
    const uint32_t whole = quotient(dividend);
    return {whole, dividend - whole * divisor_};
  }

 private:
  uint32_t divisor_ = 1, factor_ = 1, shift_ = 0;
};

}  // namespace d2_deformable
