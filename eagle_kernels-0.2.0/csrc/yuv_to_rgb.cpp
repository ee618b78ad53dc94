// Row by row, in lines that stay in the first cache. Chroma is blended of two rows (3 to 1), then of two neighbours, so
// it has 4 bits below the point, exactly; Colours takes 6. The loops are plain and the compiler makes vector code of
// them, once for each kind of CPU; only the bytes of three lines are shuffled into pixels by hand.
#include "yuv_to_rgb.h"

#include <algorithm>
#include <vector>

#include "tiles_cpu.h"

namespace eagle {
namespace {

constexpr int kChromaBits = 4;  // below the point: a quarter of a quarter

struct Lines {
  int64_t width, half;
  std::vector<int16_t> blended, chroma[2];  // a sample beside each edge: `half` + 2; `width` in whole pairs
  std::vector<uint8_t> rgb[3];

  explicit Lines(int64_t pixels)
      : width(pixels), half((pixels + 1) / 2), blended(half + 2), chroma{std::vector<int16_t>(2 * half), {}} {
    chroma[1] = chroma[0];
    for (std::vector<uint8_t>& line : rgb) line.resize(2 * half);
  }
};

#define EAGLE_INLINE inline __attribute__((always_inline))

// 3 parts of the nearer row, 1 of the other.
template <int kStep>
EAGLE_INLINE void blend(const uint8_t* __restrict near, const uint8_t* __restrict far, int64_t count,
                        int16_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int16_t>(3 * near[i * kStep] + far[i * kStep]);
}

template <bool kCosited>
EAGLE_INLINE void enlarge(const int16_t* __restrict blended, int64_t count, int16_t* __restrict out) {
  constexpr int kScale = 1 << (kPlaneBits - kChromaBits);
  for (int64_t i = 0; i < count; ++i) {
    const int left = blended[i], here = blended[i + 1], right = blended[i + 2];
    out[2 * i] = static_cast<int16_t>(kScale * (kCosited ? 4 * here : 3 * here + left));
    out[2 * i + 1] = static_cast<int16_t>(kScale * (kCosited ? 2 * (here + right) : 3 * here + right));
  }
}

EAGLE_INLINE void colour(const uint8_t* __restrict y, const int16_t* __restrict u, const int16_t* __restrict v,
                         const Colours& colours, int64_t count, uint8_t* __restrict red, uint8_t* __restrict green,
                         uint8_t* __restrict blue) {
  const Colours m = colours;  // a copy: bytes that are written could be those of anything
  for (int64_t i = 0; i < count; ++i) {
    const int32_t luma = m.y * (y[i] << kPlaneBits);
    red[i] = round_to_colour(m.bias[0] + luma + m.v_to_red * v[i]);
    green[i] = round_to_colour(m.bias[1] + luma + m.u_to_green * u[i] + m.v_to_green * v[i]);
    blue[i] = round_to_colour(m.bias[2] + luma + m.u_to_blue * u[i]);
  }
}

EAGLE_INLINE void interleave(const uint8_t* red, const uint8_t* green, const uint8_t* blue, int64_t begin, int64_t end,
                             uint8_t* out) {
  for (int64_t i = begin; i < end; ++i) {
    out[3 * i] = red[i];
    out[3 * i + 1] = green[i];
    out[3 * i + 2] = blue[i];
  }
}

// Rows `near` and `far` of both planes and row `y` -> the lines of a row of pixels.
EAGLE_INLINE void make_lines(const uint8_t* y, const uint8_t* const* near, const uint8_t* const* far, int64_t step,
                             const Colours& colours, bool cosited, Lines& lines) {
  int16_t* blended = lines.blended.data();
  for (int plane = 0; plane < 2; ++plane) {
    if (step == 1) {
      blend<1>(near[plane], far[plane], lines.half, blended + 1);
    } else {
      blend<2>(near[plane], far[plane], lines.half, blended + 1);
    }
    blended[0] = blended[1];
    blended[lines.half + 1] = blended[lines.half];
    int16_t* chroma = lines.chroma[plane].data();
    cosited ? enlarge<true>(blended, lines.half, chroma) : enlarge<false>(blended, lines.half, chroma);
  }
  colour(y, lines.chroma[0].data(), lines.chroma[1].data(), colours, lines.width, lines.rgb[0].data(),
         lines.rgb[1].data(), lines.rgb[2].data());
}

using MakeRow = void (*)(const uint8_t* y, const uint8_t* const* near, const uint8_t* const* far, int64_t step,
                         const Colours& colours, bool cosited, Lines& lines, uint8_t* out);

void make_row_portable(const uint8_t* y, const uint8_t* const* near, const uint8_t* const* far, int64_t step,
                       const Colours& colours, bool cosited, Lines& lines, uint8_t* out) {
  make_lines(y, near, far, step, colours, cosited, lines);
  interleave(lines.rgb[0].data(), lines.rgb[1].data(), lines.rgb[2].data(), 0, lines.width, out);
}

#ifdef EAGLE_X86
// Where byte `to` of the `part`-th 16 bytes of 16 pixels comes from in the line of `channel`; 128: not from there.
constexpr int8_t source(int part, int to, int channel) {
  const int at = 16 * part + to;
  return static_cast<int8_t>(at % 3 == channel ? at / 3 : -128);
}

EAGLE_AVX2 inline __m128i shuffle(int part, int channel) {
  int8_t from[16];
  for (int i = 0; i < 16; ++i) from[i] = source(part, i, channel);
  return load_16(from);
}

EAGLE_AVX2 void make_row_avx2(const uint8_t* y, const uint8_t* const* near, const uint8_t* const* far, int64_t step,
                              const Colours& colours, bool cosited, Lines& lines, uint8_t* out) {
  make_lines(y, near, far, step, colours, cosited, lines);
  const uint8_t *red = lines.rgb[0].data(), *green = lines.rgb[1].data(), *blue = lines.rgb[2].data();
  __m128i from[3][3];
  for (int part = 0; part < 3; ++part) {
    for (int channel = 0; channel < 3; ++channel) from[part][channel] = shuffle(part, channel);
  }
  int64_t i = 0;
  for (; i + 16 <= lines.width; i += 16) {
    const __m128i r = load_16(red + i), g = load_16(green + i), b = load_16(blue + i);
    for (int part = 0; part < 3; ++part) {
      const __m128i two = _mm_or_si128(_mm_shuffle_epi8(r, from[part][0]), _mm_shuffle_epi8(g, from[part][1]));
      store_16(out + 3 * i + 16 * part, _mm_or_si128(two, _mm_shuffle_epi8(b, from[part][2])));
    }
  }
  interleave(red, green, blue, i, lines.width, out);
}
#endif

MakeRow make_row([[maybe_unused]] const std::string& simd) {
#ifdef EAGLE_X86
  if (simd == "avx2" || simd == "avx512") return make_row_avx2;
#endif
  return make_row_portable;
}

void check_chroma(const char* name, const TensorView& plane, int64_t height, int64_t width) {
  check(plane.num_dims == 2 && plane.dtype == DType::kUint8 && plane.shape[0] == height && plane.shape[1] == width,
        "yuv_to_rgb: ", name, " needs uint8 of shape (", height, ", ", width, ").");
  check(plane.strides[1] == 1 || plane.strides[1] == 2 || width == 1, "yuv_to_rgb: ", name, "'s stride along a row is ",
        plane.strides[1], "; needs 1 or 2.");
}

}  // namespace

void yuv_to_rgb(const TensorView& y, const TensorView& u, const TensorView& v, const TensorView& out,
                const Colours& colours, bool cosited_across, const std::string& simd) {
  check(y.num_dims == 2 && y.dtype == DType::kUint8 && y.shape[0] >= 1 && y.shape[1] >= 1 &&
            (y.strides[1] == 1 || y.shape[1] == 1),
        "yuv_to_rgb: y needs uint8 (Y, X), samples of a row side by side.");
  const int64_t height = y.shape[0], width = y.shape[1], half_height = (height + 1) / 2;
  check_chroma("u", u, half_height, (width + 1) / 2);
  check_chroma("v", v, half_height, (width + 1) / 2);
  check(width == 1 || width == 2 || u.strides[1] == v.strides[1], "yuv_to_rgb: u and v need one stride along a row.");
  check(out.num_dims == 3 && out.dtype == DType::kUint8 && out.shape[0] == height && out.shape[1] == width &&
            out.shape[2] == 3 && out.is_contiguous(),
        "yuv_to_rgb: out needs uint8 of shape (", height, ", ", width, ", 3), contiguous.");
  check_simd("yuv_to_rgb", simd);
  const MakeRow make = make_row(simd);
  Lines lines(width);
  const TensorView* planes[] = {&u, &v};
  for (int64_t row = 0; row < height; ++row) {
    const int64_t near = row / 2;
    const int64_t far = std::clamp<int64_t>(row % 2 == 0 ? near - 1 : near + 1, 0, half_height - 1);
    const uint8_t *near_rows[2], *far_rows[2];
    for (int plane = 0; plane < 2; ++plane) {
      const uint8_t* data = static_cast<const uint8_t*>(planes[plane]->data);
      near_rows[plane] = data + near * planes[plane]->strides[0];
      far_rows[plane] = data + far * planes[plane]->strides[0];
    }
    make(static_cast<const uint8_t*>(y.data) + row * y.strides[0], near_rows, far_rows, u.strides[1], colours,
         cosited_across, lines, static_cast<uint8_t*>(out.data) + row * width * 3);
  }
}

}  // namespace eagle
