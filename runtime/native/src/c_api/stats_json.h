#pragma once

#include <string>
#include <vector>

#include "runtime/native/src/engine_stats.h"
#include "runtime/native/src/kv_events.h"

namespace precast {

/// The JSON of precast_engine_stats, precast_engine_iteration_stats and precast_engine_kv_events.
std::string to_json(const EngineStats& stats);
std::string to_json(const std::vector<IterationStats>& iterations);
std::string to_json(const std::vector<KvEvent>& events);

}  // namespace precast
