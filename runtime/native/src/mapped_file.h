#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace precast {

/// A regular file, mapped read-only and shared with every other process that maps it. Nothing is read until it is
/// touched. Movable; the bytes stay where they are.
class MappedFile {
 public:
  /// A huge page of x86-64 and of arm64 with 4 KiB pages. The mapping starts at a multiple of it, and asks for huge
  /// pages where the kernel can back a file by them.
  static constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

  /// Throws Error: not_found where there is no such file, io where it cannot be opened, read or mapped.
  static MappedFile open(const std::filesystem::path& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  /// The whole file; empty for an empty file. Valid while this object, or the one it was moved to, lives.
  /// The file must not be truncated meanwhile: touching a lost page is a SIGBUS.
  std::span<const std::byte> bytes() const noexcept { return {data_, size_bytes_}; }

  /// How many bytes of the file this process sees through huge pages now (FilePmdMapped of /proc/self/smaps).
  /// 0 where none are, or where the kernel does not say.
  std::uint64_t huge_page_mapped_bytes() const;

 private:
  MappedFile(const std::byte* data, std::size_t size_bytes) noexcept : data_(data), size_bytes_(size_bytes) {}

  const std::byte* data_;
  std::size_t size_bytes_;
};

}  // namespace precast
