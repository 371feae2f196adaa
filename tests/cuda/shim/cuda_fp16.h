// Half precision for the shim: IEEE binary16, converted with rounding to nearest even.
#pragma once

#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 0x1f;
  const float mantissa = static_cast<float>(x.bits & 0x3ff);
  float size = std::ldexp(mantissa + 1024.0f, exponent - 25);
  if (exponent == 0) size = std::ldexp(mantissa, -24);
  if (exponent == 0x1f) size = mantissa == 0 ? INFINITY : NAN;
  return x.bits & 0x8000 ? -size : size;
}

inline __half __float2half_rn(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {static_cast<uint16_t>(sign | 0x7e00)};
  const float size = std::fabs(x);
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent = size == 0 ? -14 : std::ilogb(size);
  exponent = exponent < -14 ? -14 : exponent;
  // in units of the last place; a mantissa that rounds up to 2048 carries into the exponent
  const auto units = static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return {static_cast<uint16_t>(sign | (units + ((exponent + 14) << 10)))};
}
