#pragma once

namespace precast {

/// A descriptor that is readable while it is set, for poll and its like (eventfd(2)). Not thread-safe.
class EventFd {
 public:
  /// Not set. Throws Error(io) when the process has no descriptor left.
  EventFd();
  ~EventFd();
  EventFd(const EventFd&) = delete;
  EventFd& operator=(const EventFd&) = delete;

  int descriptor() const noexcept { return descriptor_; }
  void set(bool readable) noexcept;

 private:
  int descriptor_;
  bool is_set_ = false;
};

}  // namespace precast
