// SPDX-License-Identifier: Apache-2.0
#include "plugins/collectives/cpu/message_communicator.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "plugins/collectives/cpu/gather_columns.h"
#include "plugins/collectives/cpu/ordered_sum.h"

namespace precast {
namespace {

constexpr std::size_t piece_floats = std::size_t{1} << 24;  // of one message: MPI counts bytes in 31 bits
constexpr std::size_t default_shared_sum_floats = 16 * 1024;
constexpr std::size_t num_piped = 8;     // messages to the next stage that may be on their way
constexpr std::size_t header_floats = 2;  // a word of 64 bits

std::uint64_t word_of(const std::vector<float>& data) {
  std::uint64_t word = 0;
  std::memcpy(&word, data.data(), sizeof word);
  return word;
}

std::string name(std::size_t rank) { return "rank " + std::to_string(rank); }

}  // namespace

MessageCommunicator::MessageCommunicator(MessageRanks& ranks, std::size_t num_tensor_ranks)
    : ranks_(ranks),
      num_tensor_ranks_(num_tensor_ranks),
      stage_start_(ranks.rank() - ranks.rank() % num_tensor_ranks),
      shared_sum_floats_(default_shared_sum_floats),
      received_(num_tensor_ranks),
      piped_(num_piped) {}

MessageCommunicator::~MessageCommunicator() {
  const auto give_back = [&](Box& box) { ranks_.give_back(box.transfers, box.data); };
  std::ranges::for_each(sent_, give_back);
  std::ranges::for_each(received_, give_back);
  std::ranges::for_each(piped_, give_back);
  give_back(from_before_);
}

void MessageCommunicator::all_reduce(std::span<const float> x, std::span<float> y, const ParallelFor& parallel_for) {
  ranks_.begin();
  const std::uint64_t meeting = encode_meeting(Meeting::all_reduce, x.size());
  for (std::size_t begin = 0; begin < x.size(); begin += piece_floats) {
    const std::size_t size = std::min(piece_floats, x.size() - begin);
    all_reduce_piece(x.subspan(begin, size), y.subspan(begin, size), meeting, parallel_for);
  }
}

void MessageCommunicator::all_reduce_piece(std::span<const float> x, std::span<float> y, std::uint64_t meeting,
                                           const ParallelFor& parallel_for) {
  // Of two ranks each is sent as much either way.
  if (num_tensor_ranks_ <= 2 || x.size() < shared_sum_floats_) {
    sum_alone(x, y, meeting, parallel_for);
  } else {
    sum_shared(x, y, meeting, parallel_for);
  }
}

void MessageCommunicator::sum_alone(std::span<const float> x, std::span<float> y, std::uint64_t meeting,
                                    const ParallelFor& parallel_for) {
  for_others([&](std::size_t other) { start_receive(other, x.size()); });
  Box& box = sent_[turn_ ^= 1];
  prepare(box, x.size(), meeting);
  copy_floats(x.data(), x.size(), box.data.data() + header_floats);
  for_others([&](std::size_t other) {
    start_send(box, stage_start_ + other, message_tag::meeting, 0, header_floats + x.size());
  });
  for_others([&](std::size_t other) { wait_for_piece(other, x.size(), meeting); });
  const std::size_t self = tensor_rank();
  in_float_tasks(x.size(), parallel_for, [&](std::size_t first, std::size_t last) {
    const auto numbers = [&](std::size_t rank) {
      return (rank == self ? x.data() : received_[rank].data.data() + header_floats) + first;
    };
    ordered_sum(num_tensor_ranks_, numbers, last - first, y.data() + first);
  });
}

void MessageCommunicator::sum_shared(std::span<const float> x, std::span<float> y, std::uint64_t meeting,
                                     const ParallelFor& parallel_for) {
  const std::size_t share = (x.size() + num_tensor_ranks_ - 1) / num_tensor_ranks_;
  const auto start = [&](std::size_t rank) { return std::min(rank * share, x.size()); };
  const auto count = [&](std::size_t rank) { return start(rank + 1) - start(rank); };
  const std::size_t self = tensor_rank();

  for_others([&](std::size_t other) { start_receive(other, count(self)); });
  Box& box = sent_[turn_ ^= 1];
  // A message for each of the others behind one another, with a header of its own.
  prepare(box, x.size() + num_tensor_ranks_ * header_floats, meeting);
  for_others([&](std::size_t other) {
    const std::size_t at = start(other) + other * header_floats;
    std::memcpy(box.data.data() + at, &meeting, sizeof meeting);
    copy_floats(x.data() + start(other), count(other), box.data.data() + at + header_floats);
    start_send(box, stage_start_ + other, message_tag::meeting, at, header_floats + count(other));
  });
  for_others([&](std::size_t other) { wait_for_piece(other, count(self), meeting); });

  Box& sum = sent_[turn_ ^= 1];
  prepare(sum, count(self), meeting);
  in_float_tasks(count(self), parallel_for, [&](std::size_t first, std::size_t last) {
    const auto numbers = [&](std::size_t rank) {
      return (rank == self ? x.data() + start(self) : received_[rank].data.data() + header_floats) + first;
    };
    ordered_sum(num_tensor_ranks_, numbers, last - first, sum.data.data() + header_floats + first);
  });
  for_others([&](std::size_t other) { start_receive(other, count(other)); });
  for_others([&](std::size_t other) {
    start_send(sum, stage_start_ + other, message_tag::meeting, 0, header_floats + count(self));
  });
  copy_floats(sum.data.data() + header_floats, count(self), y.data() + start(self));
  for_others([&](std::size_t other) {
    copy_floats(wait_for_piece(other, count(other), meeting), count(other), y.data() + start(other));
  });
}

void MessageCommunicator::all_gather(std::span<const float> x, std::size_t num_rows, std::size_t root, std::span<float> y,
                                     std::size_t num_features, const ParallelFor&) {
  ranks_.begin();
  if (x.empty()) return;
  const std::uint64_t meeting = encode_meeting(Meeting::all_gather, x.size());
  const std::size_t num_columns = x.size() / num_rows;
  for (std::size_t begin = 0; begin < x.size(); begin += piece_floats) {
    const std::size_t size = std::min(piece_floats, x.size() - begin);
    if (tensor_rank() != root) {
      Box& box = sent_[turn_ ^= 1];
      prepare(box, size, meeting);
      copy_floats(x.data() + begin, size, box.data.data() + header_floats);
      start_send(box, stage_start_ + root, message_tag::meeting, 0, header_floats + size);
      continue;
    }
    for_others([&](std::size_t other) { start_receive(other, size); });
    gather_columns(x.data() + begin, begin, size, root, num_columns, y, num_features);
    for_others([&](std::size_t other) {
      gather_columns(wait_for_piece(other, size, meeting), begin, size, other, num_columns, y, num_features);
    });
  }
}

void MessageCommunicator::send(std::span<const float> x) {
  ranks_.begin();
  const std::size_t to = ranks_.rank() + num_tensor_ranks_;
  if (to >= ranks_.messages().num_ranks()) {
    throw CommunicatorError(name(ranks_.rank()) + " is of the last stage, and there is none to send to");
  }
  std::size_t done = 0;
  do {  // a message without numbers is sent, too
    const std::size_t size = std::min(piece_floats, x.size() - done);
    Box& box = piped_[pipe_turn_++ % piped_.size()];
    prepare(box, size, x.size());
    copy_floats(x.data() + done, size, box.data.data() + header_floats);
    start_send(box, to, message_tag::pipeline, 0, header_floats + size);
    done += size;
  } while (done < x.size());
}

void MessageCommunicator::receive(std::span<float> y) {
  ranks_.begin();
  if (ranks_.rank() < num_tensor_ranks_) {
    throw CommunicatorError(name(ranks_.rank()) + " is of the first stage, and there is none before");
  }
  const std::size_t from = ranks_.rank() - num_tensor_ranks_;
  std::size_t done = 0;
  do {
    // Probed first: a message that is larger than expected has to be received to be named.
    std::size_t num_bytes = 0;
    ranks_.wait_until(from, "to send", [&] {
      const auto envelope = ranks_.messages().probe(message_tag::pipeline, from);
      if (envelope) num_bytes = envelope->num_bytes;
      return envelope.has_value();
    });
    from_before_.data.resize(std::max(header_floats, (num_bytes + sizeof(float) - 1) / sizeof(float)));
    const auto bytes = std::as_writable_bytes(std::span(from_before_.data));
    from_before_.transfers = {{ranks_.start_receive(from, message_tag::pipeline, bytes), from}};
    ranks_.wait_for(from_before_.transfers[0].request, from, "to send");
    const std::size_t size = num_bytes / sizeof(float) - header_floats;
    const std::uint64_t message_floats = word_of(from_before_.data);
    if (message_floats != y.size() || size > y.size() - done) {
      ranks_.fail(name(from) + " has sent " + std::to_string(message_floats) + " numbers, and " + name(ranks_.rank()) +
                  " expects " + std::to_string(y.size()) + ": they compute different steps");
      ranks_.throw_failure();
    }
    copy_floats(from_before_.data.data() + header_floats, size, y.data() + done);
    done += size;
  } while (done < y.size());
}

void MessageCommunicator::prepare(Box& box, std::size_t count, std::uint64_t word) {
  for (auto& [request, other] : box.transfers) {
    if (request != nullptr) ranks_.wait_for(request, other, "to receive");
  }
  box.transfers.clear();
  box.data.resize(header_floats + count);
  std::memcpy(box.data.data(), &word, sizeof word);
}

void MessageCommunicator::start_send(Box& box, std::size_t to, int tag, std::size_t first_float, std::size_t num_floats) {
  const auto bytes = std::as_bytes(std::span(box.data).subspan(first_float, num_floats));
  box.transfers.push_back({ranks_.start_send(to, tag, bytes), to});
}

void MessageCommunicator::start_receive(std::size_t from, std::size_t count) {
  Box& box = received_[from];
  box.data.resize(header_floats + count);
  const auto bytes = std::as_writable_bytes(std::span(box.data));
  box.transfers = {{ranks_.start_receive(stage_start_ + from, message_tag::meeting, bytes), stage_start_ + from}};
}

const float* MessageCommunicator::wait_for_piece(std::size_t tensor_rank, std::size_t count, std::uint64_t meeting) {
  Box& box = received_[tensor_rank];
  const std::size_t from = stage_start_ + tensor_rank;
  const std::size_t num_bytes = ranks_.wait_for(box.transfers[0].request, from, "to meet it");
  const std::uint64_t theirs = num_bytes >= sizeof(std::uint64_t) ? word_of(box.data) : 0;
  if (theirs != meeting) {
    ranks_.fail(describe_difference(ranks_.rank(), meeting, from, theirs));
    ranks_.throw_failure();
  }
  if (num_bytes != (header_floats + count) * sizeof(float)) {
    ranks_.fail(name(from) + " has sent " + std::to_string(num_bytes) + " bytes, and " + name(ranks_.rank()) +
                " expects " + std::to_string((header_floats + count) * sizeof(float)));
    ranks_.throw_failure();
  }
  return box.data.data() + header_floats;
}

}  // namespace precast
