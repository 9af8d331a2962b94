// Stage: collectives. The arithmetic of reductions, element by element. Called by the executor for
// Reduce and Divide steps, under the engine lock; pure functions, any thread.
// Invariant: equal inputs give equal bits on every rank, so ranks that compute the same expression
// agree exactly. NaN wins in minimum and maximum; integers wrap around; f16 and bf16 are computed
// in f32 and rounded once per call; for booleans, sum and maximum are "or", product and minimum
// "and".
#pragma once

#include <cstdint>
#include <string>

namespace tent {

// Bytes of one element of a TentDtype; 0 for an unknown one.
std::uint64_t element_bytes(std::int32_t dtype);
const char* dtype_name(std::int32_t dtype);
const char* reduce_name(std::int32_t reduce);

// Why this TentReduce cannot be applied to this TentDtype; empty when it can.
std::string why_not(std::int32_t reduce, std::int32_t dtype);

// to[i] = left[i] op right[i]. `to` may be `left` or `right`, but not overlap them otherwise.
// Requires why_not() to be empty and `bytes` to be a multiple of the element's. TENT_AVG adds.
void combine(std::int32_t reduce, std::int32_t dtype, void* to, const void* left, const void* right,
             std::uint64_t bytes);

// to[i] /= by; integers round towards zero.
void divide(std::int32_t dtype, void* to, std::uint64_t bytes, std::int32_t by);

}  // namespace tent
