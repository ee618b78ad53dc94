#include "attention_heads.h"

namespace eagle {

void check_heads(const char* op, const char* name, const TensorView& view) {
  check(view.dtype == DType::kFloat16 || view.dtype == DType::kBfloat16 || view.dtype == DType::kFloat32, op, ": ",
        name, "'s dtype is ", dtype_name(view.dtype), "; needs float16, bfloat16 or float32.");
  check(view.num_dims == 3 && view.shape[2] % kVector == 0 && view.shape[2] >= 16 && view.shape[2] <= kMaxHeadWidth, op,
        ": ", name, " has ", view.num_dims, " dims and a head width of ", view.num_dims == 3 ? view.shape[2] : 0,
        "; needs 3 and a multiple of ", kVector, " from 16 to ", kMaxHeadWidth, ".");
  if (view.num_elements() == 0) return;
  const auto whole = [&](int d) { return view.shape[d] == 1 || view.strides[d] % kVector == 0; };
  check(view.strides[2] == 1 && whole(0) && whole(1) && reinterpret_cast<uintptr_t>(view.data) % kVectorAlignment == 0,
        op, ": ", name, "'s strides are (", view.strides[0], ", ", view.strides[1], ", ", view.strides[2],
        ") from an address that leaves ", reinterpret_cast<uintptr_t>(view.data) % kVectorAlignment, " of ",
        kVectorAlignment, " bytes; needs multiples of ", kVector, ", then 1, and an address that leaves 0.");
}

}  // namespace eagle
