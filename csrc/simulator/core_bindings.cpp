// Stage: tests. See core_bindings.h. Values cross as plain tuples and dicts, so that the tests
// state the rules in Python's own terms.
#include "simulator/core_bindings.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "core/crc32c.h"
#include "core/interval_set.h"
#include "core/layout.h"
#include "core/link.h"
#include "core/rail_estimate.h"
#include "core/scheduler.h"
#include "core/segments.h"
#include "core/slicer.h"
#include "core/wire.h"

namespace py = pybind11;

namespace tent::sim {
namespace {

using Span = std::pair<std::uint64_t, std::uint64_t>;
using PartTuple = std::tuple<std::uint64_t, std::uint32_t, std::uint64_t,
                             std::vector<std::pair<std::uint64_t, std::int64_t>>,
                             std::optional<std::vector<std::int64_t>>>;

Layout to_layout(const std::vector<PartTuple>& tuples) {
  std::vector<Part> parts;
  for (const auto& [base, plane, piece_bytes, dims, blocks] : tuples) {
    Part part;
    part.base = base;
    part.plane = plane;
    part.piece_bytes = piece_bytes;
    for (const auto& [count, stride] : dims) part.dims.push_back({count, stride});
    if (blocks) part.blocks = std::make_shared<const BlockList>(*blocks);
    parts.push_back(std::move(part));
  }
  return Layout(std::move(parts));
}

std::vector<PartTuple> from_layout(const Layout& layout) {
  std::vector<PartTuple> tuples;
  for (const Part& part : layout.parts()) {
    std::vector<std::pair<std::uint64_t, std::int64_t>> dims;
    for (const Dim& dim : part.dims) dims.emplace_back(dim.count, dim.stride);
    std::optional<std::vector<std::int64_t>> blocks;
    if (part.blocks) blocks.emplace(part.blocks->begin(), part.blocks->end());
    tuples.emplace_back(part.base, part.plane, part.piece_bytes, std::move(dims),
                        std::move(blocks));
  }
  return tuples;
}

std::vector<Span> spans(const Pieces& pieces) {
  std::vector<Span> out;
  for (const Piece& piece : pieces) out.emplace_back(piece.address, piece.bytes);
  return out;
}

std::span<const std::uint8_t> view(const std::string& bytes) {
  return {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
}

py::bytes to_bytes(const Body& body) {
  return py::bytes(reinterpret_cast<const char*>(body.data()), body.size());
}

// Any header that fits in 64 bytes, as a transport would find it.
bool header_well_formed(const std::string& bytes) {
  if (bytes.size() != sizeof(FrameHeader)) throw py::value_error("a header has 64 bytes");
  FrameHeader header;
  std::memcpy(static_cast<void*>(&header), bytes.data(), sizeof header);
  return well_formed(header);
}

py::object decode_message(const std::string& bytes) {
  Message message;
  return decode(view(bytes), message) ? py::cast(std::move(message)) : py::none();
}

py::object decode_opening(const std::string& bytes) {
  Opening opening;
  return decode(view(bytes), opening) ? py::cast(std::move(opening)) : py::none();
}

void bind_layout(py::module_& module) {
  py::class_<Layout>(module, "Layout", py::module_local())
      .def(py::init(&to_layout), py::arg("parts"))
      .def_property_readonly("bytes", &Layout::bytes)
      .def_property_readonly("parts", &from_layout)
      .def("extents",
           [](const Layout& layout) {
             std::vector<std::optional<std::pair<std::int64_t, std::int64_t>>> out;
             for (const Part& part : layout.parts()) {
               std::int64_t low = 0, high = 0;
               if (part.extent(low, high)) {
                 out.emplace_back(std::pair(low, high));
               } else {
                 out.emplace_back(std::nullopt);
               }
             }
             return out;
           })
      .def("pieces", [](const Layout& layout, std::uint64_t offset, std::uint64_t length) {
        if (offset > layout.bytes() || length > layout.bytes() - offset) {
          throw py::value_error("out of the layout's range");
        }
        Pieces pieces;
        layout.pieces(offset, length, pieces);
        return spans(pieces);
      });
}

void bind_wire(py::module_& module) {
  py::class_<Target>(module, "Target", py::module_local())
      .def(py::init([](SegmentId segment, std::uint64_t key, std::uint32_t epoch,
                       const std::vector<PartTuple>& parts) {
             return Target{segment, key, epoch, to_layout(parts)};
           }),
           py::arg("segment"), py::arg("key"), py::arg("epoch"), py::arg("parts"))
      .def_property_readonly("fields", [](const Target& t) {
        return py::make_tuple(t.segment, t.key, t.epoch, from_layout(t.layout));
      });
  py::class_<Message>(module, "Message", py::module_local())
      .def(py::init<>())
      .def_property(
          "kind", [](const Message& m) { return int(m.kind); },
          [](Message& m, int kind) { m.kind = static_cast<MessageKind>(kind); })
      .def_property(
          "code", [](const Message& m) { return int(m.code); },
          [](Message& m, int code) { m.code = static_cast<Code>(code); })
      .def_readwrite("id", &Message::id)
      .def_readwrite("context", &Message::context)
      .def_readwrite("tag", &Message::tag)
      .def_readwrite("bytes", &Message::bytes)
      .def_readwrite("meta", &Message::meta)
      .def_readwrite("is_inline", &Message::is_inline)
      .def_readwrite("has_note", &Message::has_note)
      .def_property(
          "text", [](const Message& m) { return py::bytes(m.text); },
          [](Message& m, const py::bytes& text) { m.text = text; })
      .def_property(
          "payload", [](const Message& m) { return to_bytes(m.payload); },
          [](Message& m, const std::string& bytes) {
            m.payload.assign(bytes.begin(), bytes.end());
          })
      .def_readwrite("target", &Message::target)
      .def("encode", [](const Message& m) { return to_bytes(encode(m)); });
  py::class_<Opening>(module, "Opening", py::module_local())
      .def(py::init<>())
      .def_property(
          "kind", [](const Opening& o) { return int(o.kind); },
          [](Opening& o, int kind) { o.kind = static_cast<Opening::Kind>(kind); })
      .def_readwrite("bytes", &Opening::bytes)
      .def_readwrite("request", &Opening::request)
      .def_readwrite("has_note", &Opening::has_note)
      .def_property(
          "note", [](const Opening& o) { return py::bytes(o.note); },
          [](Opening& o, const py::bytes& note) { o.note = note; })
      .def_readwrite("target", &Opening::target)
      .def("encode", [](const Opening& o) { return to_bytes(encode(o)); });
  module.def("decode_message", &decode_message, py::arg("body"));
  module.def("decode_opening", &decode_opening, py::arg("body"));
  module.def("header_well_formed", &header_well_formed, py::arg("header"));
  module.def("crc32c",
             [](const std::string& bytes) { return crc32c(0, bytes.data(), bytes.size()); });
}

void bind_segments(py::module_& module) {
  py::class_<Segments>(module, "Segments", py::module_local())
      .def(py::init<>())
      .def("add",
           [](Segments& segments, const std::vector<Span>& planes, bool readable, bool writable,
              std::uint64_t blocks, std::uint64_t key) {
             std::vector<Plane> made;
             for (const auto& [base, bytes] : planes) made.push_back({base, bytes});
             return segments.add(std::move(made), readable, writable, blocks, key).id;
           })
      .def("remove", &Segments::remove)
      .def("revoke", &Segments::revoke)
      .def("epoch",
           [](Segments& segments, SegmentId id) {
             const Segment* segment = segments.find(id);
             if (segment == nullptr) throw py::key_error("there is no such segment");
             return segment->epoch;
           })
      .def("resolve", [](const Segments& segments, const Target& target, bool write) {
        Layout layout;
        const Status status = segments.resolve(
            target, write ? Segments::Access::Write : Segments::Access::Read, layout);
        py::object found = status.ok() ? py::cast(std::move(layout)) : py::none();
        return py::make_tuple(int(status.code), status.text, found);
      });
}

void bind_slicing(py::module_& module) {
  py::class_<Slicer>(module, "Slicer", py::module_local())
      .def(py::init<std::uint64_t>(), py::arg("bytes"))
      .def_property_readonly("left", &Slicer::left)
      .def("next",
           [](Slicer& slicer, std::uint64_t wanted) {
             if (slicer.left() == 0) throw py::value_error("nothing is left");
             const SliceSpan span = slicer.next(wanted);
             return Span(span.offset, span.bytes);
           })
      .def("give_back", [](Slicer& slicer, std::uint64_t offset, std::uint64_t bytes) {
        slicer.give_back({offset, bytes});
      });
  py::class_<IntervalSet>(module, "IntervalSet", py::module_local())
      .def(py::init<>())
      .def("add", &IntervalSet::add)
      .def("contains", &IntervalSet::contains)
      .def_property_readonly("count", &IntervalSet::count)
      .def_property_readonly("intervals", &IntervalSet::intervals);
}

using LinkTuple = std::tuple<LinkId, int, double, TimeNs, std::uint64_t, std::uint64_t>;

std::vector<LinkView> to_views(const std::vector<LinkTuple>& links) {
  std::vector<LinkView> views;
  for (const auto& [link, kind, rate, base, in_flight, slice_bytes] : links) {
    views.push_back({link, static_cast<RailKind>(kind), rate, base, in_flight, slice_bytes, 0});
  }
  return views;
}

void bind_scheduler(py::module_& module) {
  module.def("worth_taking",
             [](std::size_t mine, const std::vector<LinkTuple>& links, std::uint64_t left) {
               const auto views = to_views(links);
               return worth_taking(views.at(mine), views, left);
             });
  py::class_<Scheduler>(module, "Scheduler", py::module_local())
      .def(py::init<>())
      .def("add",
           [](Scheduler& scheduler, TransferId flow, std::uint64_t left, int priority,
              TimeNs deadline, RailKinds rails) {
             scheduler.add({flow, left, static_cast<Priority>(priority), deadline, rails});
           })
      .def("remove", &Scheduler::remove)
      .def("set_left", &Scheduler::set_left)
      .def_property_readonly("any_left", &Scheduler::any_left)
      .def(
          "next",
          [](Scheduler& scheduler, std::size_t mine, const std::vector<LinkTuple>& links,
             const std::function<bool(LinkId, TransferId)>& may, TimeNs now) {
            const auto views = to_views(links);
            return scheduler.next(views.at(mine), views, may, now);
          },
          py::arg("mine"), py::arg("links"), py::arg("may"), py::arg("now") = 0)
      .def("slice_bytes", [](const Scheduler& scheduler, const LinkTuple& link, int priority,
                             std::uint64_t least, TimeNs now) {
        return scheduler.slice_bytes(to_views({link})[0], static_cast<Priority>(priority), least,
                                     now);
      });
  module.def("worth_doubling", [](const LinkTuple& mine, std::uint64_t bytes,
                                  const LinkTuple& other, std::uint64_t ahead) {
    return worth_doubling(to_views({mine})[0], bytes, to_views({other})[0], ahead);
  });
  module.attr("BACKGROUND_SHARE") = Scheduler::kBackgroundShare;
}

// The estimate keeps a reference to its settings.
struct OwnedEstimate {
  std::unique_ptr<CoreSettings> settings;
  RailEstimate estimate;
};

void bind_estimate(py::module_& module) {
  py::class_<PostStamp>(module, "PostStamp", py::module_local())
      .def_readonly("posted", &PostStamp::posted)
      .def_readonly("due", &PostStamp::due);
  py::class_<OwnedEstimate>(module, "RailEstimate", py::module_local())
      .def(py::init([](double rate_hint, std::uint64_t slice_bytes_min,
                       std::uint64_t slice_bytes_max, std::uint64_t link_slice_bytes_min) {
             auto settings = std::make_unique<CoreSettings>();
             settings->slice_bytes_min = slice_bytes_min;
             settings->slice_bytes_max = slice_bytes_max;
             const CoreSettings& kept = *settings;
             return OwnedEstimate{std::move(settings),
                                  RailEstimate(kept, rate_hint, link_slice_bytes_min, 0)};
           }),
           py::arg("rate_hint") = 0.0, py::arg("slice_bytes_min") = 16 << 10,
           py::arg("slice_bytes_max") = 4 << 20, py::arg("link_slice_bytes_min") = 0)
      .def("posted", [](OwnedEstimate& e, std::uint64_t bytes,
                        TimeNs now) { return e.estimate.posted(bytes, now); })
      .def("acked", [](OwnedEstimate& e, const PostStamp& stamp, std::uint64_t bytes,
                       TimeNs now) { e.estimate.acked(stamp, bytes, now); })
      .def("lost", [](OwnedEstimate& e, std::uint64_t bytes) { e.estimate.lost(bytes); })
      .def("eta", [](const OwnedEstimate& e, std::uint64_t bytes) { return e.estimate.eta(bytes); })
      .def_property_readonly("rate", [](const OwnedEstimate& e) { return e.estimate.rate(); })
      .def_property_readonly("base_latency",
                             [](const OwnedEstimate& e) { return e.estimate.base_latency(); })
      .def_property_readonly("in_flight",
                             [](const OwnedEstimate& e) { return e.estimate.in_flight(); })
      .def_property_readonly("window", [](const OwnedEstimate& e) { return e.estimate.window(); })
      .def_property_readonly("slice_bytes",
                             [](const OwnedEstimate& e) { return e.estimate.slice_bytes(); })
      .def_property_readonly("has_room",
                             [](const OwnedEstimate& e) { return e.estimate.has_room(); });
}

struct OwnedLink {  // keeps its settings, as above
  std::unique_ptr<CoreSettings> settings;
  Link link;
};

// The receiver's half: what came in, and when it is to be acknowledged.
void bind_link(py::module_& module) {
  py::class_<OwnedLink>(module, "LinkEnd", py::module_local())
      .def(py::init([] {
        auto settings = std::make_unique<CoreSettings>();
        const CoreSettings& kept = *settings;
        return OwnedLink{std::move(settings), Link(1, LinkInfo{}, kept, 0)};
      }))
      .def("took",
           [](OwnedLink& owned, bool ack_later, TimeNs now) {
             FrameHeader header;
             header.kind = FrameKind::Control;
             header.flags = ack_later ? kAckLater : 0;
             owned.link.took(header, now);
           })
      .def("places", [](OwnedLink& owned, std::uint64_t sequence) { owned.link.places(sequence); })
      .def(
          "placed",
          [](OwnedLink& owned, std::uint64_t sequence, TimeNs now, bool ack_later) {
            FrameHeader header;
            header.sequence = sequence;
            header.flags = ack_later ? kAckLater : 0;
            return owned.link.placed(header, now);
          },
          py::arg("sequence"), py::arg("now"), py::arg("ack_later") = false)
      .def(
          "must_ack",
          [](const OwnedLink& owned, TimeNs now, bool behind) {
            return owned.link.must_ack(now, behind);
          },
          py::arg("now"), py::arg("behind"))
      .def("ack_due", [](const OwnedLink& owned) { return owned.link.ack_due(); })
      .def("ack", [](OwnedLink& owned) {
        FrameHeader header;
        owned.link.stamp_ack(header);
        return header.ack;
      });
}

}  // namespace

void bind_core(py::module_& module) {
  bind_layout(module);
  bind_wire(module);
  bind_segments(module);
  bind_slicing(module);
  bind_scheduler(module);
  bind_estimate(module);
  bind_link(module);
}

}  // namespace tent::sim
