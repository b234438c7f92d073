/// A step of a tensor core by its definition, in integers: what
/// cuda/emulator/instructions/tensor_sums.h says.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace lowrank::test {

/// significand · 2^(exponent - fraction); a subnormal number has the exponent of the smallest
/// normal one, zero has none.
struct Parts {
  int64_t significand = 0;
  int exponent = -100000;
  int fraction = 0;
};

/// Of an element with so many bits of fraction and this smallest exponent; a finite one.
inline Parts PartsOfNumber(double value, int fraction, int min_exponent) {
  if (value == 0) return {0, -100000, fraction};
  const int exponent = std::max(std::ilogb(value), min_exponent);
  return {static_cast<int64_t>(std::ldexp(value, fraction - exponent)), exponent, fraction};
}

/// significand · 2^places, cut off toward zero.
inline int64_t Shifted(int64_t significand, int places) {
  if (places >= 0) return significand * (int64_t{1} << std::min(places, 40));
  if (places < -62) return 0;
  const int64_t cut = std::llabs(significand) >> -places;
  return significand < 0 ? -cut : cut;
}

/// c + Σ a[i] · b[i] of one step, `kept` bits below the largest exponent; toward zero to f32.
inline float TensorStep(const std::vector<double>& a, const std::vector<double>& b, float c,
                        int fraction, int min_exponent, int kept) {
  double whole = static_cast<double>(c);
  for (size_t i = 0; i < a.size(); ++i) whole += a[i] * b[i];
  if (!std::isfinite(whole)) return static_cast<float>(whole);
  std::vector<Parts> terms = {PartsOfNumber(static_cast<double>(c), 23, -126)};
  for (size_t i = 0; i < a.size(); ++i) {
    const Parts x = PartsOfNumber(a[i], fraction, min_exponent);
    const Parts y = PartsOfNumber(b[i], fraction, min_exponent);
    if (x.significand == 0 || y.significand == 0) continue;
    terms.push_back({x.significand * y.significand, x.exponent + y.exponent, 2 * fraction});
  }
  int largest = -126;
  for (const Parts& term : terms) largest = std::max(largest, term.exponent);
  int64_t sum = 0;
  for (const Parts& term : terms) {
    sum += Shifted(term.significand, kept - term.fraction + term.exponent - largest);
  }
  if (sum == 0) return 0;
  const int last = largest - kept;  // exponent of the sum's unit
  const int lead = std::ilogb(static_cast<double>(std::llabs(sum))) + last;
  const int unit = std::max(std::max(lead - 23, -149), last);
  return static_cast<float>(std::ldexp(static_cast<double>(Shifted(sum, last - unit)), unit));
}

/// The same over all of k, in steps of `depth`.
inline float TensorSum(const std::vector<double>& a, const std::vector<double>& b, float c,
                       int fraction, int min_exponent, int kept, size_t depth) {
  for (size_t first = 0; first < a.size(); first += depth) {
    const auto part = [&](const std::vector<double>& of) {
      const auto begin = of.begin() + static_cast<std::ptrdiff_t>(first);
      return std::vector<double>(begin, begin + static_cast<std::ptrdiff_t>(depth));
    };
    c = TensorStep(part(a), part(b), c, fraction, min_exponent, kept);
  }
  return c;
}

}  // namespace lowrank::test
