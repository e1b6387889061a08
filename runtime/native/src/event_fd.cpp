#include "runtime/native/src/event_fd.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {

EventFd::EventFd() : descriptor_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (descriptor_ < 0) throw Error(ErrorCode::io, concat("no descriptor for events: ", std::strerror(errno)));
}

EventFd::~EventFd() { ::close(descriptor_); }

void EventFd::set(bool readable) noexcept {
  if (readable == is_set_) return;
  // Neither fails: the counter is 0 or 1, and nobody else has the descriptor.
  eventfd_t value = 0;
  static_cast<void>(readable ? ::eventfd_write(descriptor_, 1) : ::eventfd_read(descriptor_, &value));
  is_set_ = readable;
}

}  // namespace precast
