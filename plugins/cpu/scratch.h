// SPDX-License-Identifier: Apache-2.0
// Working memory of the kernels, kept from op to op and from step to step.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

namespace precast {

// Memory for one op at a time: a session owns one, and its ops, which run one after the other, share it.
//
// An op calls reset() and then take() as often as it likes. What it took stays where it is until the next reset(), and
// starts on a cache line. After a first step of the largest size no more memory is asked for.
class Scratch {
 public:
  static constexpr std::size_t alignment = 64;

  // `count` elements, their values unspecified. Throws std::bad_alloc.
  template <typename T>
  T* take(std::size_t count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= alignment);
    if (count > max_bytes / sizeof(T)) throw std::bad_alloc();
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }

  // Takes everything back. If the last op needed more than one piece, they become one.
  void reset();

  // Bytes held, used or not.
  std::size_t capacity_bytes() const noexcept;

 private:
  static constexpr std::size_t max_bytes = static_cast<std::size_t>(-1) / 4;

  struct Free {
    void operator()(std::byte* memory) const noexcept { ::operator delete(memory, std::align_val_t{alignment}); }
  };
  struct Piece {
    std::unique_ptr<std::byte, Free> memory;
    std::size_t size_bytes;
    std::size_t used_bytes;
  };

  void* take_bytes(std::size_t size_bytes);
  void add_piece(std::size_t size_bytes);

  std::vector<Piece> pieces_;  // take() cuts from the last
};

}  // namespace precast
