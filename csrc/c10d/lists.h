// Stage: c10d. What torch's collectives ask of their lists of tensors. torch 2.11 has no such
// checks; the wording is what torch's own tests look for. Called on the caller's thread.
#pragma once

#include <cstddef>
#include <vector>

#include "c10d/staging.h"

namespace tent {

// There is at least one input.
void check_some(const Complain& complain, const std::vector<at::Tensor>& inputs);
// An output list for each rank.
void check_lists(const Complain& complain, std::size_t outputs, int size);
// `what` is "input" or "output", here and below: a list has a tensor for each rank.
void check_length(const Complain& complain, const char* what, std::size_t length, int size);
// As many outputs as inputs.
void check_as_many(const Complain& complain, std::size_t outputs, std::size_t inputs);
// The root of a gather or scatter gives one list, of a tensor for each rank; the others give none.
void check_one_list(const Complain& complain, const char* what,
                    const std::vector<std::vector<at::Tensor>>& lists, int size);
void check_none(const Complain& complain, const char* what,
                const std::vector<std::vector<at::Tensor>>& lists);

}  // namespace tent
