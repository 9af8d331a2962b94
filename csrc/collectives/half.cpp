// Stage: collectives. Conversions of 16-bit floats: see the header. f16 uses the processor's
// instructions where it has them (x86-64 with F16C, arm64), else integer arithmetic.
#include "collectives/half.h"

#include <bit>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tent {

namespace {

// The exponent of f16 is 5 bits with bias 15, that of f32 8 bits with bias 127; the mantissas have
// 10 and 23 bits.
float widen_one_f16(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000u) << 16;
  const std::uint32_t rest = half & 0x7fffu;
  if (rest >= 0x7c00u) {  // infinity or NaN; a NaN becomes a quiet one
    const std::uint32_t quiet = rest > 0x7c00u ? 0x00400000u : 0;
    return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13 | quiet);
  }
  // As if it were an f32 with the same fields; the product moves the bias, denormals included.
  const float moved = std::bit_cast<float>(rest << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(moved));
}

std::uint16_t narrow_one_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint16_t sign = std::uint16_t(bits >> 16 & 0x8000u);
  const std::uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return std::uint16_t(sign | 0x7e00u | (rest >> 13 & 0x3ffu));
  if (rest >= 0x477ff000u)
    return std::uint16_t(sign | 0x7c00u);  // 65520 and more round to infinity
  if (rest < 0x38800000u) {
    // Below 2^-14 the result is a multiple of 2^-24. That is the spacing of f32 between 0.5 and 1,
    // so adding 0.5 rounds, and leaves the multiple in the lowest bits.
    const float rounded = std::bit_cast<float>(rest) + 0.5f;
    return std::uint16_t(sign | (std::bit_cast<std::uint32_t>(rounded) - 0x3f000000u));
  }
  const std::uint32_t odd = rest >> 13 & 1;
  return std::uint16_t(sign | ((rest - 0x38000000u + 0xfffu + odd) >> 13));
}

#if defined(__x86_64__)
bool has_f16c() {
  static const bool has = __builtin_cpu_supports("f16c") && __builtin_cpu_supports("avx");
  return has;
}

__attribute__((target("f16c,avx"))) std::size_t widen_fast(const std::uint16_t* from, float* to,
                                                           std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  return i;
}

__attribute__((target("f16c,avx"))) std::size_t narrow_fast(const float* from, std::uint16_t* to,
                                                            std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
  return i;
}
#elif defined(__aarch64__)
bool has_f16c() { return true; }

std::size_t widen_fast(const std::uint16_t* from, float* to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) to[i] = float(std::bit_cast<__fp16>(from[i]));
  return count;
}

std::size_t narrow_fast(const float* from, std::uint16_t* to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) to[i] = std::bit_cast<std::uint16_t>(__fp16(from[i]));
  return count;
}
#else
bool has_f16c() { return false; }
std::size_t widen_fast(const std::uint16_t*, float*, std::size_t) { return 0; }
std::size_t narrow_fast(const float*, std::uint16_t*, std::size_t) { return 0; }
#endif

}  // namespace

void widen_f16(const std::uint16_t* from, float* to, std::size_t count) {
  std::size_t i = has_f16c() ? widen_fast(from, to, count) : 0;
  for (; i < count; ++i) to[i] = widen_one_f16(from[i]);
}

void narrow_f16(const float* from, std::uint16_t* to, std::size_t count) {
  std::size_t i = has_f16c() ? narrow_fast(from, to, count) : 0;
  for (; i < count; ++i) to[i] = narrow_one_f16(from[i]);
}

void widen_bf16(const std::uint16_t* from, float* to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i)
    to[i] = std::bit_cast<float>(std::uint32_t(from[i]) << 16);
}

void narrow_bf16(const float* from, std::uint16_t* to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(from[i]);
    const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to[i] = std::uint16_t(is_nan ? (bits >> 16 | 0x40u) : rounded);
  }
}

}  // namespace tent
