// sjd2_kernels._C: the operations of kv_cache.h for callers that hold addresses. Views come as tuples of integers:
//
//   Tensor   (address, itemsize, 4 sizes, 4 strides)
//   Matrix   (address, rows, columns, row stride, column stride), None for no block table
//   Vector   (address, size, stride), None for no free list
//   Flags    (address, stride), None for no flags
//   Queue    (device, stream)
//
// with strides in elements. cpu_* functions return the first row that does not fit, having written nothing, or -1; cuda_* functions
// enqueue and return None. None of them holds the interpreter's lock while it works.
#include "kv_cache.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

namespace pybind11::detail {

template <size_t kSize>
bool load_integers(handle source, std::array<int64_t, kSize>& values) {
  if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != static_cast<Py_ssize_t>(kSize)) return false;
  for (size_t i = 0; i < kSize; ++i) {
    values[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(source.ptr(), i));
    if (values[i] == -1 && PyErr_Occurred() != nullptr) throw error_already_set();
  }
  return true;
}

template <typename Pointee>
Pointee* to_address(int64_t value) {
  return reinterpret_cast<Pointee*>(static_cast<uintptr_t>(value));
}

template <>
struct type_caster<sjd2::Tensor> {
  PYBIND11_TYPE_CASTER(sjd2::Tensor, const_name("tuple[int, ...]"));
  bool load(handle source, bool) {
    std::array<int64_t, 10> v;
    if (!load_integers(source, v)) return false;
    const int64_t item = v[1];
    value = {to_address<char>(v[0]), {v[2], v[3], v[4], v[5]}, {v[6] * item, v[7] * item, v[8] * item, v[9] * item}, item};
    return true;
  }
};

template <>
struct type_caster<sjd2::Matrix> {
  PYBIND11_TYPE_CASTER(sjd2::Matrix, const_name("tuple[int, ...] | None"));
  bool load(handle source, bool) {
    std::array<int64_t, 5> v{};
    if (!source.is_none() && !load_integers(source, v)) return false;
    value = {to_address<int64_t>(v[0]), v[1], v[2], v[3], v[4]};
    return true;
  }
};

template <>
struct type_caster<sjd2::Vector> {
  PYBIND11_TYPE_CASTER(sjd2::Vector, const_name("tuple[int, ...] | None"));
  bool load(handle source, bool) {
    std::array<int64_t, 3> v{};
    if (!source.is_none() && !load_integers(source, v)) return false;
    value = {to_address<int64_t>(v[0]), v[1], v[2]};
    return true;
  }
};

#ifdef SJD2_WITH_CUDA
template <>
struct type_caster<sjd2::Flags> {
  PYBIND11_TYPE_CASTER(sjd2::Flags, const_name("tuple[int, ...] | None"));
  bool load(handle source, bool) {
    std::array<int64_t, 2> v{};
    if (!source.is_none() && !load_integers(source, v)) return false;
    value = {to_address<bool>(v[0]), v[1]};
    return true;
  }
};

template <>
struct type_caster<sjd2::cuda::Queue> {
  PYBIND11_TYPE_CASTER(sjd2::cuda::Queue, const_name("tuple[int, int]"));
  bool load(handle source, bool) {
    std::array<int64_t, 2> v{};
    if (!load_integers(source, v)) return false;
    value = {static_cast<int>(v[0]), to_address<void>(v[1])};
    return true;
  }
};
#endif

}  // namespace pybind11::detail

namespace py = pybind11;

PYBIND11_MODULE(_C, module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  module.doc() = "KV-cache operations on raw memory.";
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
