// Threads of XLA and of OpenMP.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>

#include "xla/ffi/api/ffi.h"

namespace deepjax_native {

// What OpenMP would use: OMP_NUM_THREADS, or the cores that this process may use. Read when the library is loaded.
inline const int64_t kMaxThreads = std::max(1, omp_get_max_threads());

inline int64_t Threads(const xla::ffi::ThreadPool& pool) {
  // XLA's pool has a thread per device, which may be more than there are cores.
  return std::clamp<int64_t>(pool.num_threads(), 1, kMaxThreads);
}

// Until the end of the block, OpenMP regions of this thread have no other threads.
class NoOpenMp {
 public:
  NoOpenMp() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~NoOpenMp() { omp_set_num_threads(before_); }
  NoOpenMp(const NoOpenMp&) = delete;
  NoOpenMp& operator=(const NoOpenMp&) = delete;

 private:
  int before_;
};

// Memory that a thread keeps for its next call. The contents are lost when a larger size is asked for.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  float* Get(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;
      const size_t rounded = (bytes + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(4096, rounded);
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = rounded;
    }
    return static_cast<float*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Calls task(0), ..., task(count - 1) on the calling thread and on those of XLA's pool, on at most Threads(pool).
//
// The caller takes tasks too, and waits only for tasks that another thread has begun. So it never waits for a thread
// of the pool to become free: all of them may be in handlers like this one. Throws what the first failing task threw.
template <class Task>
void Parallel(xla::ffi::ThreadPool& pool, int64_t count, const Task& task) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable changed;
    int64_t finished = 0;
    std::exception_ptr failure;
  };
  auto shared = std::make_shared<Shared>();  // a thread of the pool may look at it after the last task is finished
  auto work = [shared, count, &task] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
      std::exception_ptr failure;
      try {
        task(i);
      } catch (...) {
        failure = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (failure && !shared->failure) shared->failure = failure;
      if (++shared->finished == count) shared->changed.notify_all();
    }
  };
  for (int64_t i = 1; i < std::min(count, Threads(pool)); i++) pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->changed.wait(lock, [&] { return shared->finished == count; });
  if (shared->failure) std::rethrow_exception(shared->failure);
}

}  // namespace deepjax_native
