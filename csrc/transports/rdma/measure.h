// Stage: transport. How quickly a device registers memory, found out by doing it. For `doctor`; any
// thread, no engine. What always holds: nothing stays open or registered.
#pragma once

#include <cstdint>
#include <string>

#include "core/types.h"

namespace tent {

// Registers so many bytes in the pieces that transfers use, for reading by peers. `library` as for
// Verbs::open(). A failure says which step, and what to do.
Status measure_registration(const std::string& library, const std::string& device,
                            std::uint64_t bytes, double& seconds);

}  // namespace tent
