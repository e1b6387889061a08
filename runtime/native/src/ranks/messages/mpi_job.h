#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "plugins/collectives/cpu/message_passing.h"
#include "runtime/native/mpi/precast_mpi.h"

namespace precast {

/// Message passing by MPI.
class MpiMessages final : public MessagePassing {
 public:
  /// Opens the library at `path`, which `precast build-mpi` has made, and starts MPI. Throws Error.
  explicit MpiMessages(const std::string& path);

  std::size_t rank() const noexcept override { return rank_; }
  std::size_t num_ranks() const noexcept override { return num_ranks_; }
  std::size_t num_local_ranks() const noexcept { return num_local_ranks_; }

  Request start_send(std::size_t to, int tag, std::span<const std::byte> bytes) override;
  Request start_receive(std::size_t from, int tag, std::span<std::byte> bytes) override;
  std::optional<std::size_t> test(Request& request) override;
  std::optional<Envelope> probe(int tag, std::optional<std::size_t> from) override;
  void abandon(Request& request) noexcept override;

  void finalize() noexcept;
  void abort() noexcept;

 private:
  const precast_mpi_t* mpi_ = nullptr;
  std::size_t rank_ = 0;
  std::size_t num_ranks_ = 0;
  std::size_t num_local_ranks_ = 1;
};

/// This process as one of those that mpiexec or Slurm has started together. There is one for the life of the process; when
/// that ends in rank 0, the other ranks end too.
class MpiJob {
 public:
  /// The job, started with the first call. Throws Error.
  static MpiJob& open(const std::string& path);

  explicit MpiJob(const std::string& path);
  MpiJob(const MpiJob&) = delete;
  MpiJob& operator=(const MpiJob&) = delete;
  ~MpiJob();

  MpiMessages& messages() noexcept { return messages_; }

  /// Of rank 0, before an engine is loaded: its number. Throws Error where `num_ranks` are not what was started, an engine is
  /// loaded already, or ranks have failed before.
  std::uint32_t begin_session(std::size_t num_ranks);
  /// `failure`: why its ranks have failed; "": they have not, and another engine may follow.
  void end_session(const std::string& failure);

 private:
  /// Of rank 0: tells the others to end; whether all of them say that they do.
  bool end_others() noexcept;

  MpiMessages messages_;
  const pid_t process_;
  std::mutex mutex_;
  std::uint32_t session_ = 0;
  bool has_session_ = false;
  std::string failure_;
};

/// The library that the variable PRECAST_MPI names; "": ranks are processes that rank 0 starts itself.
std::string mpi_library();

/// The whole life of a rank other than 0. Returns the exit status.
int run_mpi_worker(const std::string& path);

/// In rank 0, where no engine was loaded: starts the job, so that it ends with this process.
void end_mpi_job(const std::string& path);

}  // namespace precast
