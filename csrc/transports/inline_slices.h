// Stage: transport. The payload of a slice inside the stream, for links that do not share memory:
// its bytes, then one word that says whether they are the source's or filler.
// Owned by one link; engine lock held.
// What always holds: bytes go straight from the source's memory to the stream and from the stream
// to the landing memory, at addresses that the Receiver named in the same call.
#pragma once

#include "transports/frame_reader.h"
#include "transports/frame_writer.h"

namespace tent {

// Follows the payload. A source that ends in the middle of a slice has zeros sent in its place.
enum class Ending : std::uint32_t { Intact = 0x4b4f4e54, Torn = 0x4e525454 };

class InlineSliceWriter final : public SliceWriter {
 public:
  explicit InlineSliceWriter(const LinkState& link) : link_(link) {}
  void begin(const FrameHeader& header) override;
  Next gather(bool committed, Receiver& receiver, std::uint64_t& budget,
              std::vector<iovec>& parts) override;
  bool sent(std::size_t bytes) override;

 private:
  void gather_filler(std::vector<iovec>& parts) const;

  const LinkState& link_;
  FrameHeader header_;
  std::uint64_t done_ = 0;  // bytes of payload and ending
  Ending ending_ = Ending::Intact;
  Bite bite_{512};
  Pieces pieces_;
};

class InlineSliceReader final : public SliceReader {
 public:
  explicit InlineSliceReader(LinkState& link) : link_(link) {}
  void begin(const FrameHeader& header) override;
  bool take(ReadAhead& ahead, Receiver& receiver, std::uint64_t& budget) override;

 private:
  std::uint64_t take_ahead(ReadAhead& ahead, std::uint64_t bytes, bool wanted);
  std::uint64_t take_stream(ReadAhead& ahead, std::uint64_t bytes, bool wanted);
  bool take_ending(ReadAhead& ahead, Receiver& receiver);

  LinkState& link_;
  FrameHeader header_;
  std::uint64_t done_ = 0;
  Bite bite_{512};
  Pieces pieces_;
  std::vector<iovec> parts_;
};

}  // namespace tent
