// Stage: wire. CRC32C (Castagnoli) of slice payloads, with the processor's instruction where it has
// one. Stateless.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/types.h"

namespace tent {

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t bytes);
std::uint32_t crc32c(const Pieces& pieces);

}  // namespace tent
