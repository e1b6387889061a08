#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "runtime/native/src/sampling/candidates.h"

namespace precast {

/// Checks what somebody else's session says are the most likely tokens of a row.
class CandidateCheck {
 public:
  explicit CandidateCheck(std::size_t vocab_size) : is_seen_(vocab_size) {}

  /// What cannot be, with its values; nothing where all is well. Nor for a row with NaN or infinity in it: that is no defect
  /// of the session, so the sampler ends the one request, whatever its candidates are.
  std::optional<std::string> find_problem(const Candidates& candidates);

 private:
  std::optional<std::string> find_bad_id(const Candidates& candidates);

  std::vector<bool> is_seen_;  // of each token id; all false between calls
};

}  // namespace precast
