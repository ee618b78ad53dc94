#include "tiles.h"

#include <cmath>

#include "tiles_cpu.h"

namespace eagle {
namespace {

void look_up_portable(const uint8_t* line, const Bfloat16* table, int64_t num_values, Bfloat16* out) {
  for (int64_t i = 0; i < num_values; ++i) out[i] = table[line[i]];
}

#ifdef EAGLE_X86

// The whole table in eight registers; one instruction looks 32 values up in a quarter of it.
EAGLE_AVX512 void look_up_avx512(const uint8_t* line, const Bfloat16* table, int64_t num_values, Bfloat16* out) {
  __m512i part[8];
  for (int k = 0; k < 8; ++k) part[k] = _mm512_loadu_si512(table + k * 32);
  for (int64_t i = 0; i < num_values; i += 32) {
    const __m512i at = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(line + i)));
    const __mmask32 second = _mm512_test_epi16_mask(at, _mm512_set1_epi16(64));
    const __mmask32 upper = _mm512_test_epi16_mask(at, _mm512_set1_epi16(128));
    __m512i quarter[4];
    for (int k = 0; k < 4; ++k) quarter[k] = _mm512_permutex2var_epi16(part[2 * k], at, part[2 * k + 1]);
    const __m512i low = _mm512_mask_blend_epi16(second, quarter[0], quarter[1]);
    const __m512i high = _mm512_mask_blend_epi16(second, quarter[2], quarter[3]);
    _mm512_storeu_si512(out + i, _mm512_mask_blend_epi16(upper, low, high));
  }
}

#endif

}  // namespace

std::vector<Target> make_targets(int64_t width_px, int64_t height_px, const Tiling& tiling) {
  std::vector<Target> targets;
  const auto add = [&](int first_image, int cols, int rows) {
    const Axis across{width_px, int64_t{cols} * tiling.tile_px}, down{height_px, int64_t{rows} * tiling.tile_px};
    targets.push_back({across, down, first_image, cols, columns_first(tiling.order, across, down)});
  };
  add(0, tiling.cols, tiling.rows);
  if (tiling.num_images() > tiling.num_tiles()) add(tiling.num_tiles(), 1, 1);
  return targets;
}

void check_tiling(const std::string& op, const Tiling& tiling) {
  constexpr int64_t kMaxTiles = 1 << 20, kMaxTile = 1 << 14;  // as kMaxSide
  check(tiling.cols >= 1 && tiling.rows >= 1 && int64_t{tiling.cols} * tiling.rows <= kMaxTiles, op, ": grid is (",
        tiling.cols, ", ", tiling.rows, "); needs both >= 1 and at most ", kMaxTiles, " tiles.");
  check(tiling.patch_px >= 1 && tiling.tile_px >= 1 && tiling.tile_px <= kMaxTile &&
            tiling.tile_px % tiling.patch_px == 0,
        op, ": tile_px is ", tiling.tile_px, " and patch_px ", tiling.patch_px, "; needs a tile_px from 1 to ",
        kMaxTile, " that patch_px divides.");
  for (int c = 0; c < 3; ++c) {
    check(std::isfinite(tiling.mean[c]) && std::isfinite(tiling.stddev[c]) && tiling.stddev[c] != 0, op,
          ": mean and std of channel ", c, " are ", tiling.mean[c], " and ", tiling.stddev[c],
          "; needs finite numbers and std != 0.");
  }
}

void check_tiles_out(const std::string& op, const TensorView& out, const Tiling& tiling, int64_t num_images) {
  check(out.dtype == DType::kUint8 || out.dtype == DType::kBfloat16 || out.dtype == DType::kFloat32, op,
        ": out's dtype is ", dtype_name(out.dtype), "; needs uint8, bfloat16 or float32.");
  const int64_t grid = tiling.tile_px / tiling.patch_px;
  const int64_t patch_values = int64_t{3} * tiling.patch_px * tiling.patch_px;
  check(out.num_dims == 3 && out.shape[0] == num_images && out.shape[1] == grid * grid &&
            out.shape[2] == patch_values && out.is_contiguous(),
        op, ": out needs contiguous (", num_images, ", ", grid * grid, ", ", patch_values, ").");
}

const char* simd() {
#ifdef EAGLE_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni")) {
    return "avx512";
  }
  if (__builtin_cpu_supports("avx2")) return "avx2";
#endif
  return "";
}

void check_simd(const std::string& op, const std::string& wanted) {
  check(wanted.empty() || wanted == "avx2" || wanted == "avx512", op, ": simd is '", wanted,
        "'; needs 'avx512', 'avx2' or ''.");
#ifdef EAGLE_X86
  const std::string widest = simd();
  check(wanted.empty() || wanted == widest || widest == "avx512", op, ": simd is '", wanted,
        "'; this CPU has at most '", widest, "'.");
#else
  check(wanted.empty(), op, ": simd is '", wanted, "', and this build has none; needs ''.");
#endif
}

LookUp look_up([[maybe_unused]] const std::string& simd) {
#ifdef EAGLE_X86
  if (simd == "avx512") return look_up_avx512;
#endif
  return look_up_portable;
}

}  // namespace eagle
