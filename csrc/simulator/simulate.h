// Stage: tests. Runs schedule after schedule and adds up what they covered; stops at the first few
// that broke a promise.
// Any number of threads, each with its own call; the sabotage switches are per thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "simulator/coverage.h"

namespace tent::sim {

struct Plan {
  std::uint64_t first_seed = 0;
  std::uint64_t schedules = 1;
  int family = -1;       // an index into kFamilyNames; < 0: drawn from each seed
  std::string sabotage;  // "", "no_fence", "no_dedup" or "early_note"
  bool keep_text = false;
  std::uint64_t failures_max = 1;
};

struct Failure {
  std::uint64_t seed;
  std::string why;
};

struct Outcome {
  std::uint64_t schedules = 0, events = 0;
  std::uint64_t hash = 0;  // of everything that happened
  SeenCounts seen{};
  std::vector<Failure> failures;
  std::vector<std::string> text;
};

// Throws std::invalid_argument for a sabotage or family that does not exist.
Outcome simulate(const Plan& plan);

}  // namespace tent::sim
