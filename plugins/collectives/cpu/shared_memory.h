// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>

namespace precast {

// Memory that several processes map: a file without a name (memfd), which ends with the last of them. Other processes get
// it by inheriting its descriptor.
class SharedMemory {
 public:
  // New memory of zeros. Its size is sealed, so that no process can make another one's access a bus error. Throws
  // std::system_error.
  static std::shared_ptr<SharedMemory> create(std::size_t size_bytes);

  // Maps the memory behind a descriptor, which it takes over. Throws std::system_error, and std::invalid_argument where it
  // is no memory that `create` made.
  static std::shared_ptr<SharedMemory> open(int descriptor);

  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory();

  std::byte* data() const noexcept { return data_; }
  std::size_t size_bytes() const noexcept { return size_bytes_; }
  // Closed when a program is executed: whoever hands it on duplicates it.
  int descriptor() const noexcept { return descriptor_; }

 private:
  SharedMemory(int descriptor, std::size_t size_bytes);

  int descriptor_;
  std::size_t size_bytes_;
  std::byte* data_;
};

}  // namespace precast
