// Stage: collectives. 16-bit floats to 32-bit ones and back, many at a time: reductions of f16 and
// bf16 are computed in f32. Called by the reductions alone; any thread, no state.
// Invariant: rounds to nearest even, and a NaN stays a NaN.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tent {

void widen_f16(const std::uint16_t* from, float* to, std::size_t count);
void narrow_f16(const float* from, std::uint16_t* to, std::size_t count);
void widen_bf16(const std::uint16_t* from, float* to, std::size_t count);
void narrow_bf16(const float* from, std::uint16_t* to, std::size_t count);

}  // namespace tent
