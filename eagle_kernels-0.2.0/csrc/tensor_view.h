// A tensor as the core sees it: memory that somebody else owns. No torch: Python passes the numbers.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "error.h"

namespace eagle {

enum class DType { kUint8, kInt32, kInt64, kFloat16, kBfloat16, kFloat32 };

inline const char* dtype_name(DType dtype) {
  constexpr const char* names[] = {"uint8", "int32", "int64", "float16", "bfloat16", "float32"};
  return names[static_cast<int>(dtype)];
}

inline int64_t element_bytes(DType dtype) {
  constexpr int64_t bytes[] = {1, 4, 8, 2, 2, 4};
  return bytes[static_cast<int>(dtype)];
}

inline DType parse_dtype(const std::string& name) {
  for (const DType dtype :
       {DType::kUint8, DType::kInt32, DType::kInt64, DType::kFloat16, DType::kBfloat16, DType::kFloat32}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw std::invalid_argument("dtype is " + name + "; needs uint8, int32, int64, float16, bfloat16 or float32.");
}

struct TensorView {
  static constexpr int kMaxDims = 5;

  void* data = nullptr;
  DType dtype = DType::kUint8;
  int num_dims = 0;
  std::array<int64_t, kMaxDims> shape{};
  std::array<int64_t, kMaxDims> strides{};  // elements

  int64_t num_elements() const {
    int64_t n = 1;
    for (int d = 0; d < num_dims; ++d) n *= shape[d];
    return n;
  }

  bool is_contiguous() const {
    int64_t expected = 1;
    for (int d = num_dims - 1; d >= 0; --d) {
      if (shape[d] != 1 && strides[d] != expected) return false;
      expected *= shape[d];
    }
    return true;
  }
};

// `num_bytes` is what the owner holds from `address` on; a view that reaches further is refused here, once, so that
// the kernels need no bounds of their own.
inline TensorView make_view(const std::string& name, uintptr_t address, const std::vector<int64_t>& shape,
                            const std::vector<int64_t>& strides, const std::string& dtype, int64_t num_bytes) {
  check(shape.size() == strides.size() && shape.size() <= size_t{TensorView::kMaxDims}, name, " has ", shape.size(),
        " dims and ", strides.size(), " strides; needs as many of each, at most ", TensorView::kMaxDims, ".");
  TensorView view;
  view.data = reinterpret_cast<void*>(address);
  view.dtype = parse_dtype(dtype);
  view.num_dims = static_cast<int>(shape.size());
  int64_t last = 0;  // offset of the last element
  bool empty = false;
  for (int d = 0; d < view.num_dims; ++d) {
    check(shape[d] >= 0 && strides[d] >= 0, name, ": dim ", d, " has size ", shape[d], " and stride ", strides[d],
          "; needs both >= 0.");
    view.shape[d] = shape[d];
    view.strides[d] = strides[d];
    int64_t reach = 0;
    const bool fits = shape[d] == 0 || (!__builtin_mul_overflow(shape[d] - 1, strides[d], &reach) &&
                                        !__builtin_add_overflow(last, reach, &last));
    check(fits, name, " reaches past 2**63 elements in dim ", d, ".");
    empty = empty || shape[d] == 0;
  }
  if (empty) return view;
  const int64_t size = element_bytes(view.dtype);
  check(address != 0 && address % size == 0, name, " lies at address ", address, "; needs one divisible by ", size,
        ".");
  check(last < num_bytes / size, name, " reaches element ", last, ", and its memory holds ", num_bytes / size, ".");
  return view;
}

}  // namespace eagle
