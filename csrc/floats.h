// The types of floating-point tensors, one value at a time: read as float32, and written rounded to the nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace sjd2 {

enum class Float : int64_t { kFloat32, kBfloat16, kFloat16 };

constexpr int64_t size_of(Float type) { return type == Float::kFloat32 ? 4 : 2; }

// A tensor with three axes, strides in elements; no data where there is none.
struct Floats {
  const char* data;
  Float type;
  int64_t size[3];
  int64_t stride[3];
};

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <Float kType>
inline float load(const char* data, int64_t index) {
  if constexpr (kType == Float::kFloat32) {
    float value;
    std::memcpy(&value, data + index * 4, sizeof value);
    return value;
  } else {
    uint16_t bits;
    std::memcpy(&bits, data + index * 2, sizeof bits);
    if constexpr (kType == Float::kBfloat16) return float_of(uint32_t{bits} << 16);
    const uint32_t sign = uint32_t{bits & 0x8000U} << 16, exponent = (bits >> 10) & 0x1F, fraction = bits & 0x3FF;
    if (exponent == 0x1F) return float_of(sign | 0x7F800000 | fraction << 13);
    if (exponent == 0) return (sign != 0 ? -1.0F : 1.0F) * static_cast<float>(fraction) * 0x1p-24F;
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  }
}

inline uint16_t bfloat16_of(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN stays NaN
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline uint16_t float16_of(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
  if (size > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (size >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // from 65,520 on
  if (size < 0x38800000) return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(float_of(size) * 0x1p24F)));
  return static_cast<uint16_t>(sign | (size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13);
}

template <Float kType>
inline void store(char* data, int64_t index, float value) {
  if constexpr (kType == Float::kFloat32) {
    std::memcpy(data + index * 4, &value, sizeof value);
  } else {
    const uint16_t bits = kType == Float::kBfloat16 ? bfloat16_of(value) : float16_of(value);
    std::memcpy(data + index * 2, &bits, sizeof bits);
  }
}

}  // namespace sjd2
