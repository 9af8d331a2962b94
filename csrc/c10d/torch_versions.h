// Stage: c10d. What differs between the torch versions that the backend can be compiled against;
// the only file that asks for the version. Included by the other headers of this folder.
#pragma once

#include <torch/csrc/distributed/c10d/exception.h>
#include <torch/headeronly/version.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>

static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 11,
              "torch_tent needs torch 2.11 or later");

namespace tent {
// PREMUL_SUM carries its factor in a supplement whose old name is kept up to 2.13 at least.
#if TORCH_VERSION_MINOR >= 14
using PremulSupplement = ::c10d::PreMulSumSupplement;
#else
using PremulSupplement = ::c10d::NCCLPreMulSumSupplement;
#endif
}  // namespace tent
