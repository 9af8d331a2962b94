// Stage: device. See rows.h.
#include "device/rows.h"

#include <algorithm>
#include <cstring>

namespace tent {
namespace {

// The trial: its table, and behind it what is copied, and where to.
constexpr std::uint64_t kTrialFrom = 4096, kTrialTo = 64u << 10, kTrialBytes = 40u << 10;
constexpr std::uint64_t kTrialPieces[] = {16, 16u << 10, 4096 + 48, 32, 2048};

std::uint8_t* at(std::uint64_t address) { return reinterpret_cast<std::uint8_t*>(address); }

}  // namespace

void RowList::fill(const Pieces& from, const Pieces& to) {
  rows_.clear();
  bytes_ = 0;
  std::uint64_t odd = 0;
  each_piece(from, to, [&](std::uint64_t source, std::uint64_t target, std::uint64_t bytes) {
    odd |= source | target | bytes;
    for (std::uint64_t done = 0; done < bytes; done += kBytes) {
      rows_.push_back({source + done, target + done, std::min(kBytes, bytes - done) / 8});
    }
    bytes_ += bytes;
  });
  aligned_ = odd % 16 == 0;
}

RowsKernel::~RowsKernel() {
  const CudaApi& api = gpu_.api();
  if (tried_ != nullptr) {
    api.stream_synchronize(trial_stream_);
    api.event_destroy(tried_);
  }
  tables_.give(trial_);
  if (module_ != nullptr) api.module_unload(module_);
}

Status RowsKernel::load() {
  const CudaApi& api = gpu_.api();
  const Cuda& cuda = gpu_.cuda();
  int same_address = 0;
  CudaDevice device = 0;
  const bool mapped =
      api.device_get(&device, gpu_.device()) == kCudaSuccess &&
      api.device_attribute(&same_address, kCudaHostPointerIsDevices, device) == kCudaSuccess;
  if (!mapped || same_address == 0) {
    return {Code::Failed, "the GPU does not reach page-locked memory at the host's addresses", ""};
  }
  Status status = cuda.check(api.module_load(&module_, kMoveRowsCode),
                             "loading the kernel that gathers blocks");
  if (!status.ok()) return status;
  return cuda.check(api.module_function(&function_, module_, "move_rows"),
                    "finding the kernel that gathers blocks");
}

void RowsKernel::open(CudaStream stream) {
  const Status status = load();
  if (status.ok()) {
    try_out(stream);
  } else {
    why_ = status.text;
  }
}

// From and to memory of ours, with rows of several lengths; between the targets nothing may change.
void RowsKernel::try_out(CudaStream stream) {
  if (!tables_.take(PinnedArena::kSlotBytes, true, trial_)) {
    why_ = tables_.why();
    return;
  }
  const std::uint64_t base = trial_.front().address;
  for (std::uint64_t i = 0; i < kTrialBytes; ++i) *at(base + kTrialFrom + i) = std::uint8_t(i * 7);
  std::memset(at(base + kTrialTo), 0xee, kTrialBytes);
  std::vector<Row> rows;
  std::uint64_t place = 0;
  for (const std::uint64_t bytes : kTrialPieces) {
    rows.push_back({base + kTrialFrom + place, base + kTrialTo + place, bytes / 8});
    place += bytes + 64;
  }
  std::memcpy(at(base), rows.data(), rows.size() * sizeof(Row));
  const CudaApi& api = gpu_.api();
  const Cuda& cuda = gpu_.cuda();
  Status status = cuda.check(api.event_create(&tried_, kCudaEventDisableTiming), "making an event");
  if (status.ok()) status = start(stream, base, rows.size());
  if (status.ok()) status = cuda.check(api.event_record(tried_, stream), "recording an event");
  trial_stream_ = stream;
  why_ = status.text;
}

bool RowsKernel::ready() {
  if (ready_ || !why_.empty()) return ready_;
  const CudaResult result = gpu_.api().event_query(tried_);
  if (result == kCudaNotReady) return false;
  why_ = gpu_.cuda().check(result, "trying the kernel that gathers blocks").text;
  if (why_.empty()) judge();
  return ready_;
}

void RowsKernel::judge() {
  const std::uint64_t base = trial_.front().address;
  std::vector<std::uint8_t> wanted(kTrialBytes, 0xee);
  std::uint64_t place = 0;
  for (const std::uint64_t bytes : kTrialPieces) {
    std::memcpy(wanted.data() + place, at(base + kTrialFrom + place), bytes);
    place += bytes + 64;
  }
  ready_ = std::memcmp(wanted.data(), at(base + kTrialTo), kTrialBytes) == 0;
  if (!ready_) why_ = "the kernel that gathers blocks copies wrong bytes on this GPU";
  gpu_.api().event_destroy(tried_);
  tried_ = nullptr;
  tables_.give(trial_);
  trial_.clear();
}

Status RowsKernel::start(CudaStream stream, std::uint64_t table, std::size_t rows) {
  // As the code's entry has them; the last two are Triton's own, unused by this kernel.
  std::uint64_t none[2] = {0, 0};
  auto count = std::uint32_t(rows);
  void* parameters[] = {&table, &count, &none[0], &none[1]};
  const unsigned programs = std::min(count, kProgramsMax);
  ++launches_;
  return gpu_.cuda().check(
      gpu_.api().launch(function_, programs, 1, 1, kThreads, 1, 1, 0, stream, parameters, nullptr),
      "launching the kernel that gathers blocks");
}

bool RowsKernel::launch(CudaStream stream, const std::vector<Row>& rows, Pieces& table,
                        Status& status) {
  const std::uint64_t tables = (rows.size() + kRowsATable - 1) / kRowsATable;
  if (!tables_.take(tables * PinnedArena::kSlotBytes, false, table)) return false;
  std::size_t first = 0;
  for (const Piece& piece : table) {  // neighbours in memory are one
    for (std::uint64_t slot = 0; slot < piece.bytes; slot += PinnedArena::kSlotBytes) {
      const std::size_t count = std::min<std::size_t>(kRowsATable, rows.size() - first);
      std::memcpy(at(piece.address + slot), rows.data() + first, count * sizeof(Row));
      if (status.ok()) status = start(stream, piece.address + slot, count);
      first += count;
    }
  }
  return status.ok();
}

}  // namespace tent
