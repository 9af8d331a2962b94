// Stage: tests. See profile.h.
#include "simulator/profile.h"

namespace tent::sim {
namespace {

// In the order of Family: how often each is drawn.
constexpr std::array<double, static_cast<std::size_t>(Family::kCount)> kFamilyWeights = {
    0.6, 2, 1.5, 2, 1.5, 1, 1.5, 1};

double& weight(Profile& profile, FaultKind kind) {
  return profile.fault_weights[static_cast<std::size_t>(kind)];
}

double& weight(Profile& profile, OperationKind kind) {
  return profile.operation_weights[static_cast<std::size_t>(kind)];
}

void draw_settings(Random& random, CoreSettings& settings) {
  settings.slice_bytes_min = 256;
  settings.slice_bytes_max = 1024u << random.below(5);
  settings.inline_bytes_max = random.chance(0.2) ? 0 : 32u << random.below(4);
  settings.eager_bytes_max = 256u << random.below(4);
  settings.slice_time = random.between(2, 20) * kMicrosecond;
  settings.target_delay = random.between(20, 200) * kMicrosecond;
  settings.overdue_min = random.between(300, 2000) * kMicrosecond;
  settings.overdue_factor = 4;
  settings.ack_delay = settings.overdue_min / 5;
  settings.peer_timeout = random.between(30, 80) * kMillisecond;
  if (random.chance(0.1)) settings.peer_timeout *= 10;
  settings.keepalive = random.between(2, 8) * kMillisecond;
  settings.checksum = random.chance(0.3);
}

void draw_rail_faults(Random& random, Profile& profile) {
  profile.faults = static_cast<std::uint32_t>(random.between(1, 6));
  weight(profile, FaultKind::Reset) = 2;
  weight(profile, FaultKind::HalfTold) = 1;
  weight(profile, FaultKind::Hole) = 2;
  weight(profile, FaultKind::Stall) = 2;
  weight(profile, FaultKind::Slow) = 1;
  weight(profile, FaultKind::Outage) = 1;
}

void draw_process_faults(Profile& profile) {
  weight(profile, FaultKind::Stop) = 2;
  weight(profile, FaultKind::Crash) = 0.7;
  weight(profile, FaultKind::Restart) = 1.5;
  weight(profile, FaultKind::Bye) = 0.5;
}

void draw_ends(Random& random, Profile& profile) {
  profile.cancel = static_cast<double>(random.between(5, 40)) / 100;
  profile.expire = static_cast<double>(random.between(0, 25)) / 100;
  weight(profile, OperationKind::Revoke) = 1.2;
  weight(profile, OperationKind::CloseSegment) = 0.5;
}

void draw_family(Random& random, Profile& profile) {
  const bool storm = profile.family == Family::Storm;
  if (profile.family != Family::Calm) draw_rail_faults(random, profile);
  switch (profile.family) {
    case Family::Rails:
      profile.spare = true;
      profile.rails_min = 2;
      profile.rails_max = 4;
      break;
    case Family::Ends:
      draw_ends(random, profile);
      profile.spare = random.chance(0.5);
      break;
    case Family::Processes:
      draw_process_faults(profile);
      profile.cancel = random.chance(0.5) ? 0.1 : 0;
      break;
    case Family::Mischief:
      profile.settings.checksum = random.chance(0.6);
      weight(profile, FaultKind::Mischief) = 12;
      break;
    case Family::Placing:
      profile.placing_rail = 0.6;
      profile.spare = random.chance(0.3);
      if (random.chance(0.5)) draw_ends(random, profile);
      break;
    default:
      break;
  }
  if (storm) {
    draw_ends(random, profile);
    draw_process_faults(profile);
    weight(profile, FaultKind::Mischief) = 2;
    profile.placing_rail = 0.2;
    profile.faults += static_cast<std::uint32_t>(random.below(5));
  }
  if (profile.spare) profile.rails_min = 2;
  if (profile.rails_max < profile.rails_min) profile.rails_max = profile.rails_min;
}

}  // namespace

Profile draw_profile(Random& random, int forced_family) {
  Profile profile;
  const std::size_t drawn = pick(random, kFamilyWeights);
  profile.family = static_cast<Family>(forced_family < 0 ? drawn : std::size_t(forced_family));
  draw_settings(random, profile.settings);

  profile.processes = random.chance(0.7) ? 2 : static_cast<std::uint32_t>(random.between(3, 5));
  profile.rails_max = static_cast<std::uint32_t>(random.between(1, 4));
  profile.local_rail = random.chance(0.5) ? 0 : 0.4;
  profile.tear = random.chance(0.3) ? 0 : static_cast<double>(random.between(1, 30)) / 100;
  profile.late_tail = static_cast<double>(random.between(0, 4)) / 4;
  if (random.chance(0.03)) {
    profile.arena_bytes = 1u << 20;
    profile.bytes_max = kLargestTransfer;
    profile.tear = 0.01;
    profile.settings.slice_bytes_max = 64u << 10;
  } else {
    profile.bytes_max = 2048u << random.below(4);
  }
  profile.operations = static_cast<std::uint32_t>(random.between(3, 16));
  profile.work_time = random.between(200, 12000) * kMicrosecond;
  profile.fault_time = profile.work_time + random.between(0, 10) * kMillisecond;
  profile.follow_up = random.chance(0.5) ? 0 : 0.3;

  weight(profile, OperationKind::Message) = 4;
  weight(profile, OperationKind::InOrder) = 0.5;
  weight(profile, OperationKind::AnySource) = 0.5;
  weight(profile, OperationKind::Lonely) = 0.2;
  weight(profile, OperationKind::Mismatched) = 0.2;
  weight(profile, OperationKind::Write) = 2;
  weight(profile, OperationKind::BlockWrite) = 2;
  weight(profile, OperationKind::Read) = 2;
  weight(profile, OperationKind::Forbidden) = 0.3;
  draw_family(random, profile);
  return profile;
}

}  // namespace tent::sim
