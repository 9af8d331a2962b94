// Stage: wire. See the header.
#include "core/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace tent {

namespace {

constexpr std::array<std::uint32_t, 256> make_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0u);
    table[i] = crc;
  }
  return table;
}
constexpr auto kTable = make_table();

std::uint32_t by_table(std::uint32_t crc, const std::uint8_t* data, std::size_t bytes) {
  while (bytes-- > 0) crc = kTable[(crc ^ *data++) & 0xff] ^ crc >> 8;
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) std::uint32_t by_instruction(std::uint32_t crc,
                                                               const std::uint8_t* data,
                                                               std::size_t bytes) {
  std::uint64_t wide = crc;
  for (; bytes >= 8; bytes -= 8, data += 8) {
    std::uint64_t word;
    std::memcpy(&word, data, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  return by_table(std::uint32_t(wide), data, bytes);
}
#endif

}  // namespace

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t bytes) {
  const auto* begin = static_cast<const std::uint8_t*>(data);
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) return ~by_instruction(~crc, begin, bytes);
#endif
  return ~by_table(~crc, begin, bytes);
}

std::uint32_t crc32c(const Pieces& pieces) {
  std::uint32_t crc = 0;
  for (const Piece& piece : pieces) {
    crc = crc32c(crc, reinterpret_cast<const void*>(piece.address), piece.bytes);
  }
  return crc;
}

}  // namespace tent
