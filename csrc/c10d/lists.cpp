// Stage: c10d. Checks of lists of tensors: see the header.
#include "c10d/lists.h"

namespace tent {

void check_some(const Complain& complain, const std::vector<at::Tensor>& inputs) {
  if (inputs.empty()) complain("requires non-empty input tensor list");
}

void check_lists(const Complain& complain, std::size_t outputs, int size) {
  if (outputs != std::size_t(size))
    complain(c10::str("output lists should be equal to world size, ", size, ", not ", outputs));
}

void check_length(const Complain& complain, const char* what, std::size_t length, int size) {
  if (length != std::size_t(size))
    complain(c10::str("Incorrect ", what, " list size ", length, ". ", what,
                      " list size should be ", size, ", same as size of the process group."));
}

void check_as_many(const Complain& complain, std::size_t outputs, std::size_t inputs) {
  if (outputs != inputs)
    complain(c10::str("requires input/output tensor lists to have the same length, not ", inputs,
                      " and ", outputs));
}

void check_one_list(const Complain& complain, const char* what,
                    const std::vector<std::vector<at::Tensor>>& lists, int size) {
  if (lists.size() != 1)
    complain(c10::str("requires a single-element ", what, " list containing a list with ", size,
                      " tensors."));
  check_length(complain, what, lists[0].size(), size);
}

void check_none(const Complain& complain, const char* what,
                const std::vector<std::vector<at::Tensor>>& lists) {
  if (!lists.empty()) complain(c10::str("requires empty ", what, " on non-root"));
}

}  // namespace tent
