#include "rms_norm.h"

#include <cmath>
#include <vector>

#include "lanes.h"

namespace eagle {
namespace {

constexpr int kSums = 16;  // running sums of squares, whatever a vector holds: so the order is always the same

template <class T>
struct Norm {
  const T *x, *residual, *weight;  // residual: null where there is none
  T *y, *h;
  int64_t num_rows, width, x_row, residual_row;
  float eps;
};

template <class T>
EAGLE_INLINE void normalise(const Norm<T>& n, float* row) {
  for (int64_t t = 0; t < n.num_rows; ++t) {
    const T* x = n.x + t * n.x_row;
    for (int64_t c = 0; c < n.width; ++c) row[c] = to_float(x[c]);
    if (n.residual != nullptr) {
      const T* residual = n.residual + t * n.residual_row;
      T* h = n.h + t * n.width;
      for (int64_t c = 0; c < n.width; ++c) h[c] = from_float<T>(row[c] + to_float(residual[c]));
      for (int64_t c = 0; c < n.width; ++c) row[c] = to_float(h[c]);
    }
    float sums[kSums] = {};
    int64_t c = 0;
    for (; c + kSums <= n.width; c += kSums) {
      for (int i = 0; i < kSums; ++i) sums[i] += row[c + i] * row[c + i];
    }
    for (int i = 0; c < n.width; ++c, ++i) sums[i] += row[c] * row[c];
    for (int half = kSums / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    const float scale = 1.0f / std::sqrt(sums[0] / static_cast<float>(n.width) + n.eps);
    T* y = n.y + t * n.width;
    for (c = 0; c < n.width; ++c) {
      y[c] = from_float<T>(to_float(from_float<T>(row[c] * scale)) * to_float(n.weight[c]));
    }
  }
}

template <class T>
void run(const TensorView& x, const TensorView& residual, const TensorView& weight, const TensorView& y,
         const TensorView& h, float eps, bool simd) {
  const Norm<T> n{static_cast<const T*>(x.data),
                  residual.num_elements() > 0 ? static_cast<const T*>(residual.data) : nullptr,
                  static_cast<const T*>(weight.data),
                  static_cast<T*>(y.data),
                  static_cast<T*>(h.data),
                  x.shape[0],
                  x.shape[1],
                  x.strides[0],
                  residual.strides[0],
                  eps};
  std::vector<float> row(n.width);
  with_lanes(simd, [&]<class Floats>() __attribute__((always_inline)) { normalise(n, row.data()); });
}

}  // namespace

void rms_norm_cpu(const TensorView& x, const TensorView& residual, const TensorView& weight, const TensorView& y,
                  const TensorView& h, float eps, bool simd) {
  check(x.dtype == DType::kBfloat16 || x.dtype == DType::kFloat32, "rms_norm: x is ", dtype_name(x.dtype),
        "; needs bfloat16 or float32.");
  for (const TensorView* other : {&residual, &weight, &y, &h}) {
    check(other->dtype == x.dtype, "rms_norm: a tensor is ", dtype_name(other->dtype), "; needs x's ",
          dtype_name(x.dtype), ".");
  }
  const auto is_like = [&](const TensorView& other) {
    return other.num_dims == 2 && other.shape[0] == x.shape[0] && other.shape[1] == x.shape[1] &&
           (other.shape[1] <= 1 || other.strides[1] == 1);
  };
  check(x.num_dims == 2 && is_like(x), "rms_norm: x needs rows of numbers side by side.");
  const bool has_residual = residual.num_elements() > 0;
  check(!has_residual || (is_like(residual) && is_like(h) && h.is_contiguous()),
        "rms_norm: residual and h need x's shape, h contiguous.");
  check(is_like(y) && y.is_contiguous(), "rms_norm: y needs x's shape, contiguous.");
  check(weight.num_dims == 1 && weight.shape[0] == x.shape[1] && weight.is_contiguous(), "rms_norm: weight needs ",
        x.shape[1], " contiguous numbers.");
  if (y.num_elements() == 0) return;
  with_type<Bfloat16, float>(x.dtype, [&]<class T>() { run<T>(x, residual, weight, y, h, eps, simd); });
}

}  // namespace eagle
