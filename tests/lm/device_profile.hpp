// What a device does while some work runs, by kind: kernels, or the operations of LibTorch on the
// CPU, as LibTorch's profiler sees them, graph launches kernel by kernel.
#pragma once

#include <kineto/ActivityType.h>
#include <stdlib.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <queue>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace smalltalk {

enum class WorkKind : uint8_t {
  product,
  attention,
  elementwise,
  loss,
  optimizer,
  copy,
  other,
};
constexpr size_t kWorkKinds = 7;
constexpr const char* name_of(WorkKind kind) {
  constexpr std::array<const char*, kWorkKinds> kNames = {
      "product", "attention", "elementwise", "loss", "optimizer", "copy", "other"};
  return kNames[static_cast<size_t>(kind)];
}

// Of a kernel or an operation. The loss is its own kernel alone: nothing tells its products from
// others by name.
inline WorkKind kind_of_work(std::string_view name) {
  // What is found first counts; without regard to case.
  static constexpr std::array<std::pair<std::string_view, WorkKind>, 33> kSigns = {{
      {"smalltalk::block::softmax", WorkKind::loss},
      {"smalltalk::block::", WorkKind::elementwise},
      {"smalltalk::update::", WorkKind::optimizer},
      // Before the products: some of these kernels are cutlass's.
      {"flash", WorkKind::attention},
      {"fmha", WorkKind::attention},
      {"sdpa", WorkKind::attention},
      {"scaled_dot_product", WorkKind::attention},
      {"gemm", WorkKind::product},
      {"gemv", WorkKind::product},
      {"cublas", WorkKind::product},
      {"cutlass", WorkKind::product},
      {"nvjet", WorkKind::product},
      {"xmma", WorkKind::product},
      {"splitk", WorkKind::product},
      {"aten::mm", WorkKind::product},
      {"aten::bmm", WorkKind::product},
      {"aten::addmm", WorkKind::product},
      {"aten::baddbmm", WorkKind::product},
      {"aten::linear", WorkKind::product},
      {"aten::matmul", WorkKind::product},
      // Conversions to another type are copies, too.
      {"memcpy", WorkKind::copy},
      {"memset", WorkKind::copy},
      {"copy_kernel", WorkKind::copy},
      {"batchedcopy", WorkKind::copy},
      {"aten::copy_", WorkKind::copy},
      {"aten::_to_copy", WorkKind::copy},
      {"aten::cat", WorkKind::copy},
      // Sums, fills, embeddings and all else that reads and writes.
      {"at::native", WorkKind::elementwise},
      {"at_cuda_detail", WorkKind::elementwise},
      {"cub::", WorkKind::elementwise},
      {"thrust::", WorkKind::elementwise},
      {"aten::", WorkKind::elementwise},
      {"", WorkKind::other},
  }};
  const auto same = [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; };
  const auto found = std::ranges::find_if(kSigns, [&](const auto& sign) {
    return !std::ranges::search(name, sign.first, same).empty() || sign.first.empty();
  });
  return found->second;
}

struct WorkInterval {
  WorkKind kind;
  int64_t begin, end;  // nanoseconds
};

using WorkSeconds = std::array<double, kWorkKinds>;

// Each instant counts once, for the interval that began last of those that hold it: the part within
// the whole, and one of two kernels side by side. All kinds together are the time in which
// something ran.
inline WorkSeconds seconds_by_kind(std::vector<WorkInterval> intervals) {
  std::ranges::sort(intervals, [](const WorkInterval& a, const WorkInterval& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end > b.end;
  });
  WorkSeconds seconds{};
  std::priority_queue<size_t> running;  // what began last on top
  int64_t now = std::numeric_limits<int64_t>::min();
  const auto advance = [&](int64_t until) {
    while (!running.empty() && now < until) {
      const WorkInterval& newest = intervals[running.top()];
      const int64_t stop = std::min(newest.end, until);
      if (stop > now) {
        seconds[static_cast<size_t>(newest.kind)] += 1e-9 * static_cast<double>(stop - now);
        now = stop;
      }
      if (newest.end <= now) running.pop();
    }
    now = until;
  };
  for (size_t i = 0; i < intervals.size(); ++i) {
    advance(intervals[i].begin);
    running.push(i);
  }
  advance(std::numeric_limits<int64_t>::max());
  return seconds;
}

// Of work(), which waits for the device at its end and is called twice: the first time warms up the
// profiler. On a GPU kernels and copies count, on the CPU LibTorch's operations of this thread.
inline WorkSeconds profile_work(bool cuda, const std::function<void()>& work) {
  namespace profiler = torch::autograd::profiler;
  using torch::profiler::impl::ActivityType;
  using Kind = libkineto::ActivityType;
  // Graphs that were recorded before do not survive that CUPTI is taken down.
  ::setenv("TEARDOWN_CUPTI", "0", 0);
  std::set<ActivityType> activities = {ActivityType::CPU};
  if (cuda) activities.insert(ActivityType::CUDA);
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  profiler::prepareProfiler(config, activities);
  work();
  profiler::enableProfiler(config, activities);
  work();
  const std::unique_ptr<profiler::ProfilerResult> result = profiler::disableProfiler();
  std::vector<WorkInterval> intervals;
  for (const profiler::KinetoEvent& event : result->events()) {
    const auto kind = static_cast<Kind>(event.activityType());
    const bool counts = cuda ? kind == Kind::CONCURRENT_KERNEL || kind == Kind::GPU_MEMCPY ||
                                   kind == Kind::GPU_MEMSET
                             : kind == Kind::CPU_OP;
    if (!counts) continue;
    intervals.push_back({kind_of_work(event.name()), static_cast<int64_t>(event.startNs()),
                         static_cast<int64_t>(event.endNs())});
  }
  return seconds_by_kind(std::move(intervals));
}

}  // namespace smalltalk
