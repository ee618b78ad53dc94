#include "frames_to_tiles.h"

#include <algorithm>

#include "tiles_cpu.h"

namespace eagle {
namespace {

struct Resize {
  QuadTaps across, down;
  int cols;
  bool columns_first;

  Resize(const Target& target, const InnerLoops& loops)
      : across(target.across, loops),
        down(target.down, loops),
        cols(target.cols),
        columns_first(target.columns_first) {}
};

// What one thread needs to make bands, its buffers between the passes included.
template <class T>
class Band {
 public:
  Band(const TensorView& frames, const TensorView& out, const Tiling& tiling, const std::vector<Resize>& resizes,
       const NormaliseTable<T>& table, const InnerLoops& loops)
      : frames_(frames),
        out_(out),
        tiling_(tiling),
        resizes_(resizes),
        loops_(loops),
        writer_(tiling, table, loops),
        plane_values_(round_up(tiling.tile_px, kBlock)),
        line_(3 * plane_values_) {
    const int32_t one = 1 << kWeightBits;
    for (int r = 0; r < kQuad; ++r) {
      int32_t weights[kQuad] = {};
      weights[r] = one;
      loops_.encode(weights, row_alone_[r]);
    }
  }

  // Rows begin .. end - 1 of one image.
  void run(int64_t frame, int image, int begin, int end) {
    const bool is_thumbnail = image == tiling_.num_tiles();
    const Resize& resize = resizes_[is_thumbnail ? 1 : 0];
    const int tile = is_thumbnail ? 0 : image;
    const int64_t x = int64_t{tile % resize.cols} * tiling_.tile_px, y = int64_t{tile / resize.cols} * tiling_.tile_px;
    frame_ = static_cast<const uint8_t*>(frames_.data) + frame * frames_.strides[0];
    image_ = static_cast<T*>(out_.data) +
             (frame * tiling_.num_images() + image) * 3 * tiling_.tile_px * int64_t{tiling_.tile_px};
    const QuadTaps& across = resize.across;
    const int64_t first_quad = across.first_quad[x];
    const int64_t num_quads = across.first_quad[x + tiling_.tile_px - 1] + across.max_quads - first_quad;
    mixed_.resize(num_quads * kQuadBytes);
    const int64_t first_pixel = first_quad * kQuad;
    const int64_t num_pixels = std::min(num_quads * kQuad, frames_.shape[2] - first_pixel);
    if (resize.columns_first) {
      columns_then_rows(resize, x, y, first_pixel, num_pixels, begin, end);
    } else {
      rows_then_columns(resize, x, y, first_pixel, num_pixels, begin, end);
    }
  }

 private:
  // The four source rows of a quad; below the last row of the frame it stands in, with weights of zero.
  void source_rows(int64_t quad, int64_t first_pixel, const uint8_t** rows) const {
    for (int64_t r = 0; r < kQuad; ++r) {
      const int64_t y = std::min(quad * kQuad + r, frames_.shape[1] - 1);
      rows[r] = frame_ + y * frames_.strides[1] + first_pixel * 3;
    }
  }

  // The horizontal pass over mixed_; planes are [R, G, B][plane_values_][4 rows].
  void across(const Resize& resize, int64_t x, uint8_t* planes) {
    const int64_t plane_bytes = plane_values_ * kQuad;
    uint8_t* const lanes[] = {planes, planes + plane_bytes, planes + 2 * plane_bytes};
    loops_.across(mixed_.data(), resize.across, x, x + tiling_.tile_px, lanes, 3);
  }

  // Output row y of the vertical pass from a ring of quads; make(quad, memory) fills those that are not there yet.
  template <class Make>
  void next_row(const QuadTaps& down, int64_t y, int64_t num_values, int64_t& done, uint8_t* line, Make make) {
    const int64_t quad_bytes = num_values * kQuad;
    const auto slot = [&](int64_t quad) { return ring_.data() + quad % down.max_quads * quad_bytes; };
    const int64_t first = down.first_quad[y];
    const int count = down.num_quads[y];
    done = std::max(done, first);
    for (; done < first + count; ++done) make(done, slot(done));
    for (int q = 0; q < count; ++q) quads_[q] = slot(first + q);
    loops_.down(quads_.data(), down.of(y), count, num_values, line);
  }

  // Output rows y + begin .. y + end - 1 of columns x .. x + tile_px - 1.
  void rows_then_columns(const Resize& resize, int64_t x, int64_t y, int64_t first_pixel, int64_t num_pixels, int begin,
                         int end) {
    ring_.resize(resize.down.max_quads * 3 * plane_values_ * kQuad);
    quads_.resize(resize.down.max_quads);
    int64_t done = 0;
    for (int i = begin; i < end; ++i) {
      next_row(resize.down, y + i, 3 * plane_values_, done, line_.data(), [&](int64_t quad, uint8_t* planes) {
        const uint8_t* rows[kQuad];
        source_rows(quad, first_pixel, rows);
        loops_.mix(rows, num_pixels, mixed_.data());
        across(resize, x, planes);
      });
      writer_.write(line_.data(), i, image_);
    }
  }

  void columns_then_rows(const Resize& resize, int64_t x, int64_t y, int64_t first_pixel, int64_t num_pixels, int begin,
                         int end) {
    const int64_t num_values = round_up(num_pixels * 3, kBlock);
    ring_.resize(resize.down.max_quads * num_values * kQuad);
    quads_.resize(resize.down.max_quads);
    shrunk_.resize(kQuad * num_values);
    planes_.resize(3 * plane_values_ * kQuad);
    int64_t done = 0;
    for (int i = begin; i < end; i += kQuad) {
      const uint8_t* shrunk[kQuad];
      for (int r = 0; r < kQuad; ++r) {
        uint8_t* line = shrunk_.data() + r * num_values;
        shrunk[r] = line;
        const int64_t row = y + std::min(i + r, end - 1);
        next_row(resize.down, row, num_values, done, line, [&](int64_t quad, uint8_t* to) {
          const uint8_t* rows[kQuad];
          source_rows(quad, first_pixel, rows);
          interleave(rows, num_pixels * 3, to);
        });
      }
      loops_.mix(shrunk, num_pixels, mixed_.data());
      across(resize, x, planes_.data());
      const uint8_t* planes = planes_.data();
      for (int r = 0; r < kQuad && i + r < end; ++r) {  // one row out of the four: a filter of weight one
        loops_.down(&planes, row_alone_[r], 1, 3 * plane_values_, line_.data());
        writer_.write(line_.data(), i + r, image_);
      }
    }
  }

  const TensorView& frames_;
  const TensorView& out_;
  const Tiling& tiling_;
  const std::vector<Resize>& resizes_;
  const InnerLoops& loops_;
  PatchWriter<T> writer_;
  const int64_t plane_values_;  // of one channel of a line: tile_px in whole blocks
  const uint8_t* frame_ = nullptr;
  T* image_ = nullptr;
  int32_t row_alone_[kQuad][kQuad] = {};
  std::vector<uint8_t> mixed_, ring_, planes_, shrunk_, line_;
  std::vector<const uint8_t*> quads_;
};

template <class T>
void run(const TensorView& frames, const TensorView& out, const Tiling& tiling, int num_threads,
         const InnerLoops& loops) {
  std::vector<Resize> resizes;
  for (const Target& target : make_targets(frames.shape[2], frames.shape[1], tiling)) {
    resizes.emplace_back(target, loops);
  }
  const NormaliseTable<T> table(tiling);

  for_bands(frames.shape[0], tiling, num_threads, [&] { return Band<T>(frames, out, tiling, resizes, table, loops); });
}

}  // namespace

void check_frames_to_tiles(const std::vector<FrameGroup>& groups, const TensorView& out) {
  check(!groups.empty(), "frames_to_tiles: no frames are given; needs at least one tensor of them.");
  const Tiling& common = groups[0].tiling;
  int64_t num_images = 0;
  for (const auto& [frames, tiling] : groups) {
    check_tiling("frames_to_tiles", tiling);
    check(frames.num_dims == 4 && frames.dtype == DType::kUint8 && frames.shape[3] == 3 && frames.shape[1] >= 1 &&
              frames.shape[2] >= 1 && frames.shape[1] < kMaxSide && frames.shape[2] < kMaxSide,
          "frames_to_tiles: frames need uint8 of shape (L, Y, X, 3), Y and X from 1 to ", kMaxSide - 1, ".");
    check(frames.strides[3] == 1 && (frames.strides[2] == 3 || frames.shape[2] == 1),
          "frames_to_tiles: frames' last strides are (", frames.strides[2], ", ", frames.strides[3],
          "); needs (3, 1), the pixels of a row side by side.");
    check(tiling.tile_px == common.tile_px && tiling.patch_px == common.patch_px &&
              tiling.thumbnail == common.thumbnail && tiling.order == common.order &&
              std::equal(tiling.mean, tiling.mean + 3, common.mean) &&
              std::equal(tiling.stddev, tiling.stddev + 3, common.stddev),
          "frames_to_tiles: two groups of frames differ in more than their grids.");
    num_images += frames.shape[0] * tiling.num_images();
  }
  check_tiles_out("frames_to_tiles", out, common, num_images);
}

void frames_to_tiles_cpu(const TensorView& frames, const TensorView& out, const Tiling& tiling, int num_threads,
                         const std::string& simd) {
  check_frames_to_tiles({{frames, tiling}}, out);
  check(num_threads >= 0, "frames_to_tiles: num_threads is ", num_threads, "; needs >= 0 (0: one for each CPU).");
  const InnerLoops& loops = inner_loops("frames_to_tiles", simd);
  if (frames.shape[0] == 0) return;
  switch (out.dtype) {
    case DType::kUint8:
      return run<uint8_t>(frames, out, tiling, num_threads, loops);
    case DType::kBfloat16:
      return run<Bfloat16>(frames, out, tiling, num_threads, loops);
    case DType::kFloat32:
      return run<float>(frames, out, tiling, num_threads, loops);
    default:  // refused above
      return;
  }
}

}  // namespace eagle
