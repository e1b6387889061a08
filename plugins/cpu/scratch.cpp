// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/scratch.h"

#include <algorithm>

namespace precast {

void* Scratch::take_bytes(std::size_t size_bytes) {
  const std::size_t rounded = (size_bytes + alignment - 1) / alignment * alignment;
  if (pieces_.empty() || pieces_.back().size_bytes - pieces_.back().used_bytes < rounded) {
    if (!pieces_.empty() && pieces_.back().used_bytes == 0) pieces_.pop_back();  // too small, and nobody has any of it
    add_piece(std::max(rounded, alignment));
  }
  Piece& piece = pieces_.back();
  void* const taken = piece.memory.get() + piece.used_bytes;
  piece.used_bytes += rounded;
  return taken;
}

void Scratch::reset() {
  if (pieces_.size() > 1) {
    const std::size_t total = capacity_bytes();
    pieces_.clear();  // before the new one, so that both are never held
    add_piece(total);
  }
  if (!pieces_.empty()) pieces_.back().used_bytes = 0;
}

std::size_t Scratch::capacity_bytes() const noexcept {
  std::size_t total = 0;
  for (const Piece& piece : pieces_) total += piece.size_bytes;
  return total;
}

// operator new leaves the pages untouched: what an op never writes costs no memory.
void Scratch::add_piece(std::size_t size_bytes) {
  auto* const memory = static_cast<std::byte*>(::operator new(size_bytes, std::align_val_t{alignment}));
  pieces_.push_back({std::unique_ptr<std::byte, Free>(memory), size_bytes, 0});
}

}  // namespace precast
