// SPDX-License-Identifier: Apache-2.0
// How ranks meet: what the kernels of AllReduce, AllGather, Send and Receive are given.
#pragma once

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>

#include "plugins/cpu/kernel.h"

namespace precast {

// A collective that cannot be completed: a rank has ended, takes too long, or computes something else. The text names the
// rank and says why. After it the communicator is of no use any more: every later call throws the same.
class CommunicatorError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One rank's connection to the others of its engine. Ranks are numbered as in docs/ranks.md: rank = stage * tensor parallel
// size + tensor rank.
//
// Every rank makes the same calls in the same order, from one thread at a time. All of them throw CommunicatorError.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual std::size_t num_tensor_ranks() const noexcept = 0;
  virtual std::size_t tensor_rank() const noexcept = 0;

  // y[i] = x of tensor rank 0 + x of tensor rank 1 + ..., in fp32 and in that order. Of equal size on all ranks of the
  // stage; y may be x itself.
  virtual void all_reduce(std::span<const float> x, std::span<float> y, const ParallelFor& parallel_for) = 0;

  // x: [num_rows, num_columns] of this rank, row-major. On tensor rank `root` y is [num_rows, num_features], where column
  // r * num_columns + j is column j of tensor rank r, up to num_features; on the others it is not touched.
  virtual void all_gather(std::span<const float> x, std::size_t num_rows, std::size_t root, std::span<float> y,
                          std::size_t num_features, const ParallelFor& parallel_for) = 0;

  // Hands x to the same tensor rank of the next stage. x may be changed when it returns.
  virtual void send(std::span<const float> x) = 0;

  // The oldest x that the same tensor rank of the stage before has sent and that was not received yet. Throws if that is of
  // another size.
  virtual void receive(std::span<float> y) = 0;

  // Says that this rank is alive, whatever it computes. Cheap; whoever computes a node calls it.
  virtual void heartbeat() noexcept = 0;
};

}  // namespace precast
