#pragma once

#include <list>
#include <string>

#include "runtime/native/src/engine_stats.h"
#include "runtime/native/src/kv_events.h"

namespace precast {

/// The JSON of precast_engine_stats, precast_engine_iteration_stats and precast_engine_kv_events.
std::string to_json(const EngineStats& stats);
std::string to_json(const std::list<IterationStats>& iterations);
std::string to_json(const std::list<KvEvent>& events);

}  // namespace precast
