#pragma once

#include <cstddef>
#include <mutex>

#include "plugins/collectives/cpu/communicator.h"
#include "plugins/cpu/kernel.h"
#include "plugins/cpu/scratch.h"
#include "runtime/native/src/pool_memory.h"

namespace precast {

/// What the kernels of one session share. Outlives them.
struct KernelState {
  KernelLevel level = KernelLevel::portable;
  std::size_t num_threads = 1;        ///< a hint for splitting work
  const PoolMemory* pools = nullptr;  ///< where KV pools must lie; null: anywhere
  Communicator* communicator = nullptr;  ///< to the engine's other ranks; null: there are none
  Scratch scratch;                    ///< under `mutex`: a session may be run by several threads at once
  std::mutex mutex;
};

}  // namespace precast
