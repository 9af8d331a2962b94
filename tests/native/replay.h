// Stage: tests. The end of every fuzz target: what libFuzzer calls; and, without libFuzzer, a
// main() that calls it with the content of each file in the folders that are named.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

#ifdef TENT_REPLAY
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

int main(int count, char** words) {
  std::size_t files = 0;
  for (int n = 1; n < count; ++n) {
    for (const auto& entry : std::filesystem::directory_iterator(words[n])) {
      std::ifstream file(entry.path(), std::ios::binary);
      const std::vector<char> content(std::istreambuf_iterator<char>(file), {});
      // Memory of exactly this size, so that a byte beyond it is noticed.
      const std::vector<std::uint8_t> bytes(content.begin(), content.end());
      std::printf("%s\n", entry.path().c_str());
      std::fflush(stdout);
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
      ++files;
    }
  }
  std::printf("%zu inputs\n", files);
  return files == 0;
}
#endif
