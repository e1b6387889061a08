// SPDX-License-Identifier: Apache-2.0
#include "plugins/collectives/cpu/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

namespace precast {
namespace {

constexpr int size_seals = F_SEAL_SHRINK | F_SEAL_GROW;

[[noreturn]] void fail(const char* task) { throw std::system_error(errno, std::generic_category(), task); }

// Closes a descriptor unless it was given on.
class Descriptor {
 public:
  explicit Descriptor(int value) noexcept : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const noexcept { return value_; }
  void release() noexcept { value_ = -1; }

 private:
  int value_;
};

}  // namespace

std::shared_ptr<SharedMemory> SharedMemory::create(std::size_t size_bytes) {
  Descriptor file(::memfd_create("precast-ranks", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (file.get() < 0) fail("make shared memory");
  if (::ftruncate(file.get(), static_cast<off_t>(size_bytes)) != 0) fail("give shared memory its size");
  if (::fcntl(file.get(), F_ADD_SEALS, size_seals | F_SEAL_SEAL) != 0) fail("seal shared memory");
  std::shared_ptr<SharedMemory> memory(new SharedMemory(file.get(), size_bytes));
  file.release();
  return memory;
}

std::shared_ptr<SharedMemory> SharedMemory::open(int descriptor) {
  Descriptor file(descriptor);
  const int seals = ::fcntl(descriptor, F_GET_SEALS);
  if (seals < 0 || (seals & size_seals) != size_seals) {
    throw std::invalid_argument("the descriptor is not of shared memory whose size is sealed");
  }
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) fail("look at shared memory");
  std::shared_ptr<SharedMemory> memory(new SharedMemory(descriptor, static_cast<std::size_t>(status.st_size)));
  file.release();
  return memory;
}

SharedMemory::SharedMemory(int descriptor, std::size_t size_bytes) : descriptor_(descriptor), size_bytes_(size_bytes) {
  void* const data = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) fail("map shared memory");
  data_ = static_cast<std::byte*>(data);
}

SharedMemory::~SharedMemory() {
  ::munmap(data_, size_bytes_);
  ::close(descriptor_);
}

}  // namespace precast
