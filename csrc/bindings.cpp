// sjd2_kernels._C: the operations of kv_cache.h, sampling.h and denoising.h for callers that hold addresses; casters.h says how views come.
//
// cpu_* functions return the first row that does not fit, having written nothing, or -1; cuda_* functions enqueue and return None. None
// of them holds the interpreter's lock while it works.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "casters.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  module.doc() = "Sampling, denoising and KV-cache operations on raw memory.";
  module.attr("compiler") = SJD2_COMPILER;
  // Version of the CUDA compiler and the architectures it built for; empty without CUDA.
  module.attr("cuda_version") = SJD2_CUDA_VERSION;
  module.attr("cuda_architectures") = SJD2_CUDA_ARCHITECTURES;

  module.def("cpu_append", &sjd2::cpu::append, Unlocked());
  module.def("cpu_gather", &sjd2::cpu::gather, Unlocked());
  module.def("cpu_rollback", &sjd2::cpu::rollback, Unlocked());
  module.def("cpu_compact_rows", &sjd2::cpu::compact_rows, Unlocked());
  module.def("cpu_compact_columns", &sjd2::cpu::compact_columns, Unlocked());
  module.def("cpu_reserve", &sjd2::cpu::reserve, Unlocked());
  module.def("cpu_compact_table", &sjd2::cpu::compact_table, Unlocked());

  module.def(
      "cpu_verify",
      [](const sjd2::Logits& logits, const sjd2::Logits& uncond, const sjd2::Logits& last, const sjd2::Logits& last_uncond,
         const sjd2::Statistics& last_statistics, const sjd2::Processing& processing, const sjd2::Window& window, int64_t rule, float log_keep_ratio,
         int64_t end_id, const sjd2::Verified& result, int threads) {
        return sjd2::cpu::verify(logits, uncond, last, last_uncond, last_statistics, processing, window, static_cast<sjd2::Rule>(rule),
                                 log_keep_ratio, end_id, result, threads);
      },
      Unlocked());
  module.def(
      "cpu_sample",
      [](const sjd2::Logits& logits, const sjd2::Logits& uncond, const sjd2::Processing& processing, uintptr_t seeds, uintptr_t iteration,
         uintptr_t position, int64_t slots, int64_t purpose, uintptr_t tokens, int threads) {
        const auto vector = [](uintptr_t address) { return reinterpret_cast<int64_t*>(address); };
        sjd2::cpu::sample(logits, uncond, processing, vector(seeds), vector(iteration), vector(position), slots, purpose, vector(tokens), threads);
      },
      Unlocked());

  module.def(
      "cpu_denoise",
      [](const sjd2::Embeddings& embeds, const sjd2::Embeddings& weight, const sjd2::NoisySlots& slots, uintptr_t out, int threads) {
        return sjd2::cpu::denoise(embeds, weight, slots, reinterpret_cast<char*>(out), threads);
      },
      Unlocked());

#ifdef SJD2_WITH_CUDA
  // The compactions get their scratch as an address; workspace_size() says how many int64 it must hold.
  const auto scratch = [](uintptr_t address) { return reinterpret_cast<int64_t*>(address); };
  module.def("workspace_size", &sjd2::cuda::workspace_size);
  module.def("cuda_append", &sjd2::cuda::append, Unlocked());
  module.def("cuda_gather", &sjd2::cuda::gather, Unlocked());
  module.def("cuda_rollback", &sjd2::cuda::rollback, Unlocked());
  module.def(
      "cuda_compact_rows",
      [=](const std::vector<sjd2::Tensor>& caches, sjd2::Vector lengths, sjd2::Vector rows, uintptr_t workspace, sjd2::Flags overflow,
          sjd2::cuda::Queue queue) { sjd2::cuda::compact_rows(caches, lengths, rows, scratch(workspace), overflow, queue); },
      Unlocked());
  module.def(
      "cuda_compact_columns",
      [=](const std::vector<sjd2::Tensor>& caches, sjd2::Vector lengths, sjd2::Matrix columns, sjd2::Matrix table, uintptr_t workspace,
          sjd2::Flags overflow,
          sjd2::cuda::Queue queue) { sjd2::cuda::compact_columns(caches, lengths, columns, table, scratch(workspace), overflow, queue); },
      Unlocked());
  module.def("cuda_reserve", &sjd2::cuda::reserve, Unlocked());
  module.def(
      "cuda_compact_table",
      [=](sjd2::Matrix table, sjd2::Vector free_list, sjd2::Vector lengths, sjd2::Vector rows, uintptr_t workspace, sjd2::Flags overflow,
          sjd2::cuda::Queue queue) { sjd2::cuda::compact_table(table, free_list, lengths, rows, scratch(workspace), overflow, queue); },
      Unlocked());
#endif
}
