// Stage: device. Many small pieces in one launch of a kernel, instead of one call of the driver for
// each. The kernel reads and writes page-locked host memory and the GPU's alike, so a slice of
// scattered blocks is gathered or scattered on its way, without a staging area in between.
// Owned by DeviceCopies, one per GPU; engine lock held.
// What always holds: it is used only after it has copied some memory of ours right on this very
// GPU; where it cannot be used, or there is no memory for another table of places, launch() says so
// at once and nothing was started.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "device/arena.h"
#include "drivers/cuda.h"

namespace tent {

extern const char* const kMoveRowsCode;  // PTX: triton_kernels/rows.py

struct Row {
  std::uint64_t from = 0, to = 0, words = 0;  // of 8 bytes; all multiples of 16 bytes
};
static_assert(sizeof(Row) == 24);

// Calls `each(from, to, bytes)` for what is contiguous on both sides, which have equally many
// bytes.
template <class Each>
void each_piece(const Pieces& from, const Pieces& to, Each each) {
  std::size_t f = 0, t = 0;
  std::uint64_t from_done = 0, to_done = 0;
  while (f < from.size() && t < to.size()) {
    const std::uint64_t bytes = std::min(from[f].bytes - from_done, to[t].bytes - to_done);
    each(from[f].address + from_done, to[t].address + to_done, bytes);
    if ((from_done += bytes) == from[f].bytes) ++f, from_done = 0;
    if ((to_done += bytes) == to[t].bytes) ++t, to_done = 0;
  }
}

// The pieces of one copy, as they are on both sides: never more than kBytes each.
class RowList {
 public:
  static constexpr std::uint64_t kBytes = 16u << 10;  // ROW_WORDS_MAX of the kernel

  void fill(const Pieces& from, const Pieces& to);
  std::uint64_t bytes() const { return bytes_; }
  bool aligned() const { return aligned_; }
  const std::vector<Row>& rows() const { return rows_; }  // `words` count when aligned() only

 private:
  std::vector<Row> rows_;
  std::uint64_t bytes_ = 0;
  bool aligned_ = true;
};

class RowsKernel {
 public:
  RowsKernel(const Gpu& gpu, PinnedArena& tables) : gpu_(gpu), tables_(tables) {}
  ~RowsKernel();
  RowsKernel(const RowsKernel&) = delete;
  RowsKernel& operator=(const RowsKernel&) = delete;

  // Loads the code and starts to try it, on this stream. The context is current in all calls.
  void open(CudaStream stream);
  bool ready();  // it has shown that it is right; looks whether the trial is over
  // False: it was not launched, or not to the end, and then `status` says why. The table must be
  // given back when the GPU is done with the stream's work.
  bool launch(CudaStream stream, const std::vector<Row>& rows, Pieces& table, Status& status);
  const std::string& why_not() const { return why_; }  // "" while it can be used, or is tried
  std::uint64_t launches() const { return launches_; }

 private:
  static constexpr unsigned kThreads = 256, kProgramsMax = 128;
  static constexpr std::uint64_t kRowsATable = PinnedArena::kSlotBytes / sizeof(Row);

  Status load();
  Status start(CudaStream stream, std::uint64_t table, std::size_t rows);
  void try_out(CudaStream stream);
  void judge();

  const Gpu& gpu_;
  PinnedArena& tables_;
  CudaModule module_ = nullptr;
  CudaFunction function_ = nullptr;
  CudaEvent tried_ = nullptr;  // the trial's end
  CudaStream trial_stream_ = nullptr;
  Pieces trial_;
  bool ready_ = false;
  std::string why_;
  std::uint64_t launches_ = 0;
};

}  // namespace tent
