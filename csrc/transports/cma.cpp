// Stage: transport. See cma.h.
#include "transports/cma.h"

#include <sys/uio.h>

#include <algorithm>
#include <fstream>
#include <vector>

namespace tent {
namespace {

constexpr std::size_t kPartsMax = 1024;  // IOV_MAX

std::string refusal(int error, std::int32_t pid) {
  const std::string who = "process " + std::to_string(pid);
  switch (error) {
    case ESRCH:
      return who +
             " cannot be seen from here: it has ended, or is in another PID namespace "
             "(share it between the containers)";
    case ENOSYS:
      return "this kernel has no process_vm_readv (CONFIG_CROSS_MEMORY_ATTACH)";
    case EFAULT:
      return who + " has no readable memory at the address that it named";
    case EPERM:
    case EACCES:
      break;
    default:
      return "reading the memory of " + who + ": " + std::generic_category().message(error);
  }
  int scope = 0;
  std::ifstream("/proc/sys/kernel/yama/ptrace_scope") >> scope;
  if (scope > 0) {
    return "reading the memory of " + who + " is refused by Yama (kernel.yama.ptrace_scope is " +
           std::to_string(scope) + "): set it to 0, or give both processes CAP_SYS_PTRACE";
  }
  return "reading the memory of " + who +
         " is refused: run both as one user, and in a container allow the system call "
         "process_vm_readv (seccomp) or add CAP_SYS_PTRACE";
}

// Walks over pieces of memory, so many bytes at a time.
class Cursor {
 public:
  // Appends at most `bytes` from here on, in at most kPartsMax parts; returns how many bytes.
  template <class List, class AddressOf>
  std::uint64_t gather(const List& pieces, AddressOf address_of, std::uint64_t bytes,
                       std::vector<iovec>& parts) const {
    parts.clear();
    std::uint64_t total = 0, offset = offset_;
    for (std::size_t i = index_; i < pieces.size() && total < bytes; ++i, offset = 0) {
      if (parts.size() == kPartsMax) break;
      const std::uint64_t taken = std::min(pieces[i].bytes - offset, bytes - total);
      parts.push_back({reinterpret_cast<void*>(address_of(pieces[i]) + offset), taken});
      total += taken;
    }
    return total;
  }
  template <class List>
  void advance(const List& pieces, std::uint64_t bytes) {
    offset_ += bytes;
    while (index_ < pieces.size() && offset_ >= pieces[index_].bytes) {
      offset_ -= pieces[index_++].bytes;
    }
  }

 private:
  std::size_t index_ = 0;
  std::uint64_t offset_ = 0;
};

class CmaLink final : public LocalLink {
 public:
  std::uint64_t name(const Pieces& pieces, std::uint64_t&, std::vector<NamedPiece>& out) override {
    std::uint64_t named = 0;
    for (const Piece& piece : pieces) {
      if (out.size() == kChunkPiecesMax) break;
      out.push_back({0, piece.address, piece.bytes});
      named += piece.bytes;
    }
    return named;
  }

  bool fetch(std::span<const NamedPiece> from, const Pieces& to) override {
    Cursor source, landing;
    for (;;) {
      const auto place = [](const NamedPiece& piece) { return piece.place; };
      const auto address = [](const Piece& piece) { return piece.address; };
      std::uint64_t bytes = landing.gather(to, address, UINT64_MAX, here_);
      // The last look comes after the last byte: all of them were this process's.
      if (bytes == 0) return socket.alive() || state.broke(ended(), Code::PeerLost);
      bytes = source.gather(from, place, bytes, there_);
      // Looked at each time: a number that was given to another process must not be read from.
      if (!socket.alive()) return state.broke(ended(), Code::PeerLost);
      const ssize_t got = ::process_vm_readv(socket.pid(), here_.data(), here_.size(),
                                             there_.data(), there_.size(), 0);
      if (got <= 0) return state.broke(refusal(got < 0 ? errno : EFAULT, socket.pid()));
      source.advance(from, std::uint64_t(got));
      landing.advance(to, std::uint64_t(got));
    }
  }

  bool release(const NamedPiece&) override { return true; }
  bool take_parcel(Parcel&) override { return false; }

 private:
  std::string ended() const { return "peer process " + std::to_string(socket.pid()) + " ended"; }

  std::vector<iovec> here_, there_;
};

}  // namespace

Reach CmaTransport::reach(LinkId link, const Pieces&) const {
  return links_.find(link) != nullptr ? Reach::Direct : Reach::No;
}

Status CmaTransport::register_region(const Region&) { return {}; }

std::unique_ptr<LocalLink> CmaTransport::make_link() { return std::make_unique<CmaLink>(); }

Status CmaTransport::accepts(const PeerSocket& peer) const {
  if (peer.pid() <= 0) return failed("the peer is in another PID namespace: CMA cannot reach it");
  if (peer.pidfd() < 0)
    return failed(
        "CMA needs a pidfd of the peer: Linux 5.3 or later, and the "
        "peer still running");
  return {};
}

std::string probe_cma(std::int32_t pid, std::uint64_t address, std::uint64_t value) {
  if (pid <= 0) return "the peer is in another PID namespace: share it between the containers";
  std::uint64_t word = ~value;
  const iovec here{&word, sizeof word};
  const iovec there{reinterpret_cast<void*>(address), sizeof word};
  if (::process_vm_readv(pid, &here, 1, &there, 1, 0) != ssize_t(sizeof word)) {
    return refusal(errno, pid);
  }
  if (word == value) return "";
  return "process " + std::to_string(pid) +
         " is another one as seen from here: the PID namespaces differ (share one)";
}

}  // namespace tent
