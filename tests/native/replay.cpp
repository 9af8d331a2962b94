// Stage: tests. The program around a fuzz target where there is no libFuzzer: calls it with the
// content of each file in the folders that are named. Linked by tests/fuzz/targets.py.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

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
