// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

namespace precast {

// A message that cannot be sent or received. The text says why.
class MessageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Messages between processes that share no memory; MPI's model. Nothing here waits.
//
// Messages with the same sender, receiver and tag arrive in the order in which they were sent. Called from one thread at a
// time. All calls but abandon throw MessageError.
class MessagePassing {
 public:
  using Request = void*;  // of a message on its way; null: there is none

  struct Envelope {
    std::size_t from = 0;
    std::size_t num_bytes = 0;
  };

  virtual ~MessagePassing() = default;

  virtual std::size_t rank() const noexcept = 0;
  virtual std::size_t num_ranks() const noexcept = 0;

  // `bytes` stay as they are until the request is done.
  virtual Request start_send(std::size_t to, int tag, std::span<const std::byte> bytes) = 0;
  virtual Request start_receive(std::size_t from, int tag, std::span<std::byte> bytes) = 0;

  // Whether it is done, and how many bytes were received; then the request is null.
  virtual std::optional<std::size_t> test(Request& request) = 0;

  // The first message with this tag that has come and that no receive was started for; `from`: of this rank only.
  virtual std::optional<Envelope> probe(int tag, std::optional<std::size_t> from = {}) = 0;

  // Forgets a request whose other side may never come. Its bytes may be read, or written, for as long as this object lives:
  // see keep.
  virtual void abandon(Request& request) noexcept = 0;

  // Owns the bytes of an abandoned request until the end of this object.
  void keep(std::shared_ptr<void> bytes) { kept_.push_back(std::move(bytes)); }

 private:
  std::vector<std::shared_ptr<void>> kept_;
};

}  // namespace precast
