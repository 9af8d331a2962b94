// Stage: transport. See copy.h.
#include "transports/copy.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tent {

#if defined(__x86_64__)
namespace {

// Below this, what was copied is likely to be read again before it leaves the cache.
constexpr std::size_t kPastCacheBytes = 512u << 10;
constexpr std::size_t kLine = 64, kStep = 2 * kLine;
constexpr std::size_t kAhead = 1024;  // prefetched so far ahead of the copy

// Whole steps only; `to` is aligned to 32 bytes.
__attribute__((target("avx2"))) void stream_steps(std::uint8_t* to, const std::uint8_t* from,
                                                  std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += kStep) {
    _mm_prefetch(reinterpret_cast<const char*>(from) + at + kAhead, _MM_HINT_NTA);
    _mm_prefetch(reinterpret_cast<const char*>(from) + at + kAhead + kLine, _MM_HINT_NTA);
    const auto* in = reinterpret_cast<const __m256i*>(from + at);
    auto* out = reinterpret_cast<__m256i*>(to + at);
    const __m256i a = _mm256_loadu_si256(in), b = _mm256_loadu_si256(in + 1);
    const __m256i c = _mm256_loadu_si256(in + 2), d = _mm256_loadu_si256(in + 3);
    _mm256_stream_si256(out, a);
    _mm256_stream_si256(out + 1, b);
    _mm256_stream_si256(out + 2, c);
    _mm256_stream_si256(out + 3, d);
  }
  // Streamed stores are not ordered with those that later say that the bytes are here.
  _mm_sfence();
}

bool can_stream() {
  static const bool can = __builtin_cpu_supports("avx2");
  return can;
}

}  // namespace

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes < kPastCacheBytes || !can_stream()) {
    std::memcpy(to, from, bytes);
    return;
  }
  auto* out = static_cast<std::uint8_t*>(to);
  const auto* in = static_cast<const std::uint8_t*>(from);
  const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(out) % kLine) % kLine;
  const std::size_t body = (bytes - head) / kStep * kStep;
  std::memcpy(out, in, head);
  stream_steps(out + head, in + head, body);
  std::memcpy(out + head + body, in + head + body, bytes - head - body);
}
#else
void copy_bytes(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
#endif

}  // namespace tent
