#include "tiles.h"

#include <cmath>

namespace eagle {

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

}  // namespace eagle
