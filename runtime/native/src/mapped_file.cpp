#include "runtime/native/src/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/native/src/error.h"

namespace precast {
namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int value) noexcept : value_(value) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const noexcept { return value_; }

 private:
  int value_;
};

[[noreturn]] void fail(const std::filesystem::path& path, const char* action, int error_number) {
  throw Error(error_number == ENOENT ? ErrorCode::not_found : ErrorCode::io,
              path.string() + ": cannot " + action + ": " + system_message(error_number));
}

/// Maps the file at a multiple of the huge page size: reserves more than enough address space, maps over the aligned
/// part of it, and returns the rest.
const std::byte* map_aligned(int descriptor, std::size_t size_bytes, const std::filesystem::path& path) {
  constexpr std::size_t alignment = MappedFile::huge_page_bytes;
  const auto page_bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t mapped_bytes = (size_bytes + page_bytes - 1) / page_bytes * page_bytes;
  const std::size_t reserved_bytes = mapped_bytes + alignment;
  void* const reserved = ::mmap(nullptr, reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) fail(path, "reserve address space for it", errno);
  const auto start = reinterpret_cast<std::uintptr_t>(reserved);
  const std::uintptr_t aligned = (start + alignment - 1) / alignment * alignment;
  void* const data =
      ::mmap(reinterpret_cast<void*>(aligned), size_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, descriptor, 0);
  if (data == MAP_FAILED) {
    const int error_number = errno;
    ::munmap(reserved, reserved_bytes);
    fail(path, "map it", error_number);
  }
  const std::uintptr_t end = aligned + mapped_bytes;
  if (aligned != start) ::munmap(reserved, aligned - start);
  ::munmap(reinterpret_cast<void*>(end), start + reserved_bytes - end);
  return static_cast<const std::byte*>(data);
}

/// Sum of FilePmdMapped over the mappings that start inside [begin, end), in bytes.
std::uint64_t sum_file_pmd_mapped(std::istream& smaps, std::uintptr_t begin, std::uintptr_t end) {
  static constexpr std::string_view field = "FilePmdMapped:";
  std::uint64_t total_kib = 0;
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    const char* const line_end = line.data() + line.size();
    if (line.starts_with(field)) {
      std::uint64_t kib = 0;
      const std::size_t digits = std::min(line.find_first_not_of(' ', field.size()), line.size());
      std::from_chars(line.data() + digits, line_end, kib);
      if (inside) total_kib += kib;
      continue;
    }
    // A mapping begins with a line like "7f0123456000-7f0123477000 r--s ..."; its other lines are like "Rss:  4 kB".
    std::uintptr_t start = 0;
    const char* const behind = std::from_chars(line.data(), line_end, start, 16).ptr;
    if (behind != line_end && *behind == '-') inside = start >= begin && start < end;
  }
  return total_kib * 1024;
}

}  // namespace

MappedFile MappedFile::open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer. It means nothing for a regular file.
  const FileDescriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (descriptor.get() < 0) fail(path, "open it", errno);
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) fail(path, "read its size", errno);
  if (!S_ISREG(status.st_mode)) throw Error(ErrorCode::io, path.string() + ": not a regular file");
  const auto size_bytes = static_cast<std::size_t>(status.st_size);
  if (size_bytes == 0) return {nullptr, 0};
  const std::byte* data = map_aligned(descriptor.get(), size_bytes, path);
  // A hint, given before the first touch. Kernels without huge pages for files refuse it, and ordinary pages serve.
  ::madvise(const_cast<std::byte*>(data), size_bytes, MADV_HUGEPAGE);
  return {data, size_bytes};
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_bytes_);
}

std::uint64_t MappedFile::huge_page_mapped_bytes() const {
  std::ifstream smaps("/proc/self/smaps");
  const auto begin = reinterpret_cast<std::uintptr_t>(data_);
  return sum_file_pmd_mapped(smaps, begin, begin + size_bytes_);
}

}  // namespace precast
