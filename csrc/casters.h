// How Python's tuples of integers become the views of kv_cache.h, sampling.h and denoising.h. Strides are in elements.
//
//   Tensor      (address, itemsize, 4 sizes, 4 strides)
//   Matrix      (address, rows, columns, row stride, column stride), None for no block table
//   Vector      (address, size, stride), None for no free list
//   Flags       (address, stride), None for no flags
//   Queue       (device, stream)
//   Floats      (address, type, 3 sizes, 3 strides), None where there are none: logits, embeddings
//   Processing, Statistics, Window, Verified, NoisySlots: an address for each field, 0 for none
#pragma once

#include <pybind11/pybind11.h>

#include <array>

#include "denoising.h"
#include "kv_cache.h"
#include "sampling.h"

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

template <>
struct type_caster<sjd2::Floats> {
  PYBIND11_TYPE_CASTER(sjd2::Floats, const_name("tuple[int, ...] | None"));
  bool load(handle source, bool) {
    std::array<int64_t, 8> v{};
    if (!source.is_none() && !load_integers(source, v)) return false;
    value = {to_address<char>(v[0]), static_cast<sjd2::Float>(v[1]), {v[2], v[3], v[4]}, {v[5], v[6], v[7]}};
    return true;
  }
};

template <>
struct type_caster<sjd2::NoisySlots> {
  PYBIND11_TYPE_CASTER(sjd2::NoisySlots, const_name("tuple[int, ...]"));
  bool load(handle source, bool) {
    std::array<int64_t, 8> v;
    if (!load_integers(source, v)) return false;
    value = {to_address<float>(v[0]), to_address<float>(v[1]), to_address<int64_t>(v[2]), to_address<int64_t>(v[3]),
             to_address<float>(v[4]), to_address<float>(v[5]), to_address<int64_t>(v[6]), to_address<int64_t>(v[7])};
    return true;
  }
};

template <>
struct type_caster<sjd2::Processing> {
  PYBIND11_TYPE_CASTER(sjd2::Processing, const_name("tuple[int, ...]"));
  bool load(handle source, bool) {
    std::array<int64_t, 5> v;
    if (!load_integers(source, v)) return false;
    value = {to_address<float>(v[0]), to_address<float>(v[1]), to_address<int64_t>(v[2]), to_address<float>(v[3]), to_address<bool>(v[4])};
    return true;
  }
};

template <>
struct type_caster<sjd2::Statistics> {
  PYBIND11_TYPE_CASTER(sjd2::Statistics, const_name("tuple[int, ...] | None"));
  bool load(handle source, bool) {
    std::array<int64_t, 3> v{};
    if (!source.is_none() && !load_integers(source, v)) return false;
    value = {to_address<float>(v[0]), to_address<int64_t>(v[1]), to_address<float>(v[2])};
    return true;
  }
};

template <>
struct type_caster<sjd2::Window> {
  PYBIND11_TYPE_CASTER(sjd2::Window, const_name("tuple[int, ...]"));
  bool load(handle source, bool) {
    std::array<int64_t, 8> v;
    if (!load_integers(source, v)) return false;
    value = {to_address<int64_t>(v[0]), to_address<int64_t>(v[1]), to_address<bool>(v[2]),    to_address<int64_t>(v[3]),
             to_address<int64_t>(v[4]), to_address<int64_t>(v[5]), to_address<int64_t>(v[6]), to_address<int64_t>(v[7])};
    return true;
  }
};

template <>
struct type_caster<sjd2::Verified> {
  PYBIND11_TYPE_CASTER(sjd2::Verified, const_name("tuple[int, ...]"));
  bool load(handle source, bool) {
    std::array<int64_t, 7> v;
    if (!load_integers(source, v)) return false;
    value = {to_address<int64_t>(v[0]), to_address<bool>(v[1]), to_address<int64_t>(v[2]),
             {to_address<float>(v[3]), to_address<int64_t>(v[4]), to_address<float>(v[5])}, to_address<bool>(v[6])};
    return true;
  }
};

}  // namespace pybind11::detail
