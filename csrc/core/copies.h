// Stage: slicer. The few copies that the core makes itself: small payloads that ride in messages.
// Stateless. Called by Dialogue.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "core/wire.h"

namespace tent {

Body gather(const Layout& source);
void scatter(const Body& bytes, const Layout& destination);  // bytes.size() <= destination.bytes()
// The blocks that a layout names, each once, in order.
std::vector<std::int64_t> sorted_blocks(const Layout& layout);

}  // namespace tent
