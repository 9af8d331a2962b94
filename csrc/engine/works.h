// Stage: engine. What stands behind the C function table: the groups of an engine, and the work
// that was started in them. Owned by Engine; c_api.cpp holds the functions themselves. Thread: any,
// for TentWork; groups and collectives under the engine lock.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "collectives/collectives.h"
#include "engine/c_api.h"
#include "engine/operations.h"

namespace tent {

class Engine;
class Exchange;

struct WorkGroup {
  RankMap ranks;
  // Engine lock:
  std::string aborted;                           // why; empty while it is whole
  std::map<std::int32_t, std::string> aborters;  // other ranks that have aborted it, and the words
};

const TentApi& c_functions();

}  // namespace tent

struct TentEngine {
  TentEngine(tent::Engine& owner, tent::Exchange& exchange);
  tent::Engine& engine;
  TentApi api;
  tent::Collectives collectives;
  std::unordered_map<tent::GroupId, std::shared_ptr<tent::WorkGroup>> groups;
};

struct TentStorage {
  std::weak_ptr<tent::Engine> engine;
  std::uint64_t number = 0;  // never used twice in the process
};

struct TentWork {
  TentEngine* owner = nullptr;
  tent::OperationRef operation;
  std::shared_ptr<tent::WorkGroup> group;  // null: refused before it began
  tent::CollectiveId collective = 0;       // 0: a single transfer
};
