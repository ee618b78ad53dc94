#include "yuv_to_tiles.h"

#include <algorithm>

#include "tiles_cpu.h"

namespace eagle {
namespace {

constexpr int kRows = kLanes * kQuad;  // of samples that the horizontal pass takes at once, one or two planes'

struct PlaneResize {
  QuadTaps across, down;
  int64_t width, height;  // samples
  bool columns_first;

  PlaneResize(const Target& target, const InnerLoops& loops)
      : across(target.across, loops),
        down(target.down, loops),
        width(target.across.in),
        height(target.down.in),
        columns_first(target.columns_first) {}
};

struct YuvResize {
  PlaneResize luma, chroma;
  int cols;
};

// Luma, or the two chroma planes side by side: resized rows of one tile, one after the other.
class PlaneRows {
 public:
  PlaneRows(std::vector<const TensorView*> planes, int tile_px, const InnerLoops& loops)
      : planes_(std::move(planes)),
        quads_a_plane_(kLanes / static_cast<int>(planes_.size())),
        tile_px_(tile_px),
        plane_values_(round_up(tile_px, kBlock)),
        loops_(loops),
        lines_(planes_.size() * plane_values_) {}

  // The rows that come: those of the tile whose first pixel is (y, x), from `begin` on, up to `end`.
  void start(const PlaneResize& resize, int64_t frame, int64_t x, int64_t y, int begin, int end) {
    resize_ = &resize;
    frame_ = frame;
    x_ = x;
    y_ = y;
    begin_ = begin;
    end_ = end;
    num_quads_done_ = 0;
    const int64_t first_quad = resize.across.first_quad[x];
    const int64_t num_quads = resize.across.first_quad[x + tile_px_ - 1] + resize.across.max_quads - first_quad;
    first_sample_ = first_quad * kQuad;
    num_samples_ = std::min(num_quads * kQuad, resize.width - first_sample_);
    mixed_.resize(num_quads * kQuadBytes);
    gathered_.resize(kRows * num_samples_);
    quads_.resize(resize.down.max_quads);
    ring_quads_ = round_up(resize.down.max_quads + quads_a_plane_ - 1, quads_a_plane_);
    ring_values_ = resize.columns_first ? round_up(num_samples_, kBlock) : plane_values_;
    ring_.resize(planes_.size() * ring_quads_ * ring_values_ * kQuad);
    if (resize.columns_first) {
      shrunk_.resize(kRows * ring_values_);
      wide_.resize(kRows * plane_values_);
    }
  }

  // Row `i` of the tile, wide, of plane 0; that of plane 1 follows plane_values later. Rows come in their order.
  const int16_t* next(int i) {
    if (resize_->columns_first) {
      columns_then_rows(i);
    } else {
      rows_then_columns(i);
    }
    return lines_.data();
  }

 private:
  // num_samples_ samples of a row of the frame, side by side; below the last row of the plane it stands in, with
  // weights of zero.
  const uint8_t* samples(int plane, int64_t row, uint8_t* memory) const {
    const TensorView& view = *planes_[plane];
    const int64_t step = view.shape[2] == 1 ? 1 : view.strides[2];
    const uint8_t* from = static_cast<const uint8_t*>(view.data) + frame_ * view.strides[0] +
                          std::min(row, resize_->height - 1) * view.strides[1] + first_sample_ * step;
    if (step == 1) return from;
    for (int64_t i = 0; i < num_samples_; ++i) memory[i] = from[2 * i];
    return memory;
  }

  uint8_t* slot(int plane, int64_t quad) {
    return ring_.data() + (plane * ring_quads_ + quad % ring_quads_) * ring_values_ * kQuad;
  }

  // The vertical pass for one row of one plane, from quads of rows that are in the ring.
  template <class T>
  void down(void (*loop)(const uint8_t* const*, const int32_t*, int, int64_t, T*), int plane, int64_t y, T* line) {
    const QuadTaps& taps = resize_->down;
    for (int q = 0; q < taps.num_quads[y]; ++q) quads_[q] = slot(plane, taps.first_quad[y] + q);
    loop(quads_.data(), taps.of(y), taps.num_quads[y], ring_values_, line);
  }

  // Calls make(quad) for the quads of row y that are not in the ring yet, `step` at a time.
  template <class Make>
  void fill_ring(int64_t y, int step, Make make) {
    const int64_t first = resize_->down.first_quad[y];
    num_quads_done_ = std::max(num_quads_done_, first / step * step);
    for (; num_quads_done_ < first + resize_->down.num_quads[y]; num_quads_done_ += step) make(num_quads_done_);
  }

  void rows_then_columns(int i) {
    fill_ring(y_ + i, quads_a_plane_, [&](int64_t quad) {
      const uint8_t* rows[kRows];
      uint8_t* lanes[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int plane = lane / quads_a_plane_;
        const int64_t lane_quad = quad + lane % quads_a_plane_;
        for (int r = 0; r < kQuad; ++r) {
          const int row = lane * kQuad + r;
          rows[row] = samples(plane, lane_quad * kQuad + r, gathered_.data() + row * num_samples_);
        }
        lanes[lane] = slot(plane, lane_quad);
      }
      loops_.mix_rows(rows, num_samples_, mixed_.data());
      loops_.across(mixed_.data(), resize_->across, x_, x_ + tile_px_, lanes, kLanes);
    });
    for (int plane = 0; plane < num_planes(); ++plane) {
      down(loops_.down_wide, plane, y_ + i, lines_.data() + plane * plane_values_);
    }
  }

  void columns_then_rows(int i) {
    const int num_rows = quads_a_plane_ * kQuad;  // that the horizontal pass takes of a plane
    const int in_block = (i - begin_) % num_rows;
    if (in_block == 0) make_block(i, num_rows);
    for (int plane = 0; plane < num_planes(); ++plane) {
      const int row = plane * num_rows + in_block;
      const int16_t* from = wide_.data() + row / kQuad * kQuad * plane_values_ + row % kQuad;
      for (int64_t x = 0; x < tile_px_; ++x) lines_[plane * plane_values_ + x] = from[x * kQuad];
    }
  }

  void make_block(int i, int num_rows) {
    const uint8_t* rows[kRows];
    for (int r = 0; r < num_rows; ++r) {
      const int64_t y = y_ + std::min(i + r, end_ - 1);
      fill_ring(y, 1, [&](int64_t quad) {
        for (int plane = 0; plane < num_planes(); ++plane) {
          const uint8_t* source[kQuad];
          for (int s = 0; s < kQuad; ++s) {
            source[s] = samples(plane, quad * kQuad + s, gathered_.data() + s * num_samples_);
          }
          interleave(source, num_samples_, slot(plane, quad));
        }
      });
      for (int plane = 0; plane < num_planes(); ++plane) {
        uint8_t* line = shrunk_.data() + (plane * num_rows + r) * ring_values_;
        down(loops_.down, plane, y, line);
        rows[plane * num_rows + r] = line;
      }
    }
    int16_t* lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = wide_.data() + lane * kQuad * plane_values_;
    loops_.mix_rows(rows, num_samples_, mixed_.data());
    loops_.across_wide(mixed_.data(), resize_->across, x_, x_ + tile_px_, lanes);
  }

  int num_planes() const { return static_cast<int>(planes_.size()); }

  const std::vector<const TensorView*> planes_;
  const int quads_a_plane_;  // of rows, in the horizontal pass
  const int tile_px_;
  const int64_t plane_values_;  // of one line: tile_px in whole blocks
  const InnerLoops& loops_;
  const PlaneResize* resize_ = nullptr;
  int64_t frame_ = 0, x_ = 0, y_ = 0;
  int begin_ = 0, end_ = 0;
  int64_t num_quads_done_ = 0, first_sample_ = 0, num_samples_ = 0;
  int64_t ring_quads_ = 0, ring_values_ = 0;  // of one plane; of one row
  std::vector<uint8_t> gathered_, mixed_, ring_, shrunk_;
  std::vector<int16_t> wide_, lines_;
  std::vector<const uint8_t*> quads_;
};

// What one thread needs to make bands.
template <class T>
class YuvBand {
 public:
  YuvBand(const YuvFrames& frames, const TensorView& out, const Tiling& tiling, const std::vector<YuvResize>& resizes,
          const NormaliseTable<T>& table, const InnerLoops& loops)
      : frames_(frames),
        out_(out),
        tiling_(tiling),
        resizes_(resizes),
        loops_(loops),
        luma_({&frames.y}, tiling.tile_px, loops),
        chroma_({&frames.u, &frames.v}, tiling.tile_px, loops),
        writer_(tiling, table, loops),
        plane_values_(round_up(tiling.tile_px, kBlock)),
        line_(3 * plane_values_) {}

  // Rows begin .. end - 1 of one image.
  void run(int64_t frame, int image, int begin, int end) {
    const bool is_thumbnail = image == tiling_.num_tiles();
    const YuvResize& resize = resizes_[is_thumbnail ? 1 : 0];
    const int tile = is_thumbnail ? 0 : image;
    const int64_t x = int64_t{tile % resize.cols} * tiling_.tile_px, y = int64_t{tile / resize.cols} * tiling_.tile_px;
    T* patches = static_cast<T*>(out_.data) +
                 (frame * tiling_.num_images() + image) * 3 * tiling_.tile_px * int64_t{tiling_.tile_px};
    luma_.start(resize.luma, frame, x, y, begin, end);
    chroma_.start(resize.chroma, frame, x, y, begin, end);
    for (int i = begin; i < end; ++i) {
      const int16_t *luma = luma_.next(i), *chroma = chroma_.next(i);
      loops_.to_rgb(luma, chroma, chroma + plane_values_, frames_.colours, plane_values_, line_.data());
      writer_.write(line_.data(), i, patches);
    }
  }

 private:
  const YuvFrames& frames_;
  const TensorView& out_;
  const Tiling& tiling_;
  const std::vector<YuvResize>& resizes_;
  const InnerLoops& loops_;
  PlaneRows luma_, chroma_;
  PatchWriter<T> writer_;
  const int64_t plane_values_;
  std::vector<uint8_t> line_;
};

template <class T>
void run(const YuvFrames& frames, const TensorView& out, const Tiling& tiling, int num_threads,
         const InnerLoops& loops) {
  std::vector<YuvResize> resizes;
  for (const auto& [luma, chroma] : make_yuv_targets(frames, tiling)) {
    resizes.push_back({PlaneResize(luma, loops), PlaneResize(chroma, loops), luma.cols});
  }
  const NormaliseTable<T> table(tiling);
  for_bands(frames.y.shape[0], tiling, num_threads,
            [&] { return YuvBand<T>(frames, out, tiling, resizes, table, loops); });
}

void check_plane(const char* name, const TensorView& plane, int64_t num_frames, int64_t height, int64_t width,
                 int64_t max_step) {
  check(plane.num_dims == 3 && plane.dtype == DType::kUint8 && plane.shape[0] == num_frames &&
            plane.shape[1] == height && plane.shape[2] == width,
        "yuv_to_tiles: ", name, " needs uint8 of shape (", num_frames, ", ", height, ", ", width, ").");
  check((plane.strides[2] >= 1 && plane.strides[2] <= max_step) || width == 1, "yuv_to_tiles: ", name,
        "'s stride along a row is ", plane.strides[2], "; needs 1 to ", max_step, ".");
}

}  // namespace

std::vector<YuvTarget> make_yuv_targets(const YuvFrames& frames, const Tiling& tiling) {
  const int64_t width = frames.y.shape[2], height = frames.y.shape[1];
  std::vector<YuvTarget> targets;
  for (const Target& luma : make_targets(width, height, tiling)) {
    const auto half = [](const Axis& axis, bool is_cosited) {
      return Axis{(axis.in + 1) / 2, axis.out, static_cast<double>(axis.in) / 2, is_cosited ? 0.25 : 0.0};
    };
    const Axis across = half(luma.across, frames.cosited_across), down = half(luma.down, frames.cosited_down);
    const bool is_columns_first = columns_first(tiling.order, across, down);
    targets.push_back({luma, {across, down, luma.first_image, luma.cols, is_columns_first}});
  }
  return targets;
}

void check_yuv_to_tiles(const YuvFrames& frames, const TensorView& out, const Tiling& tiling) {
  check_tiling("yuv_to_tiles", tiling);
  const TensorView& y = frames.y;
  check(y.num_dims == 3 && y.shape[1] >= 1 && y.shape[2] >= 1 && y.shape[1] < kMaxSide && y.shape[2] < kMaxSide,
        "yuv_to_tiles: y needs shape (L, Y, X), Y and X from 1 to ", kMaxSide - 1, ".");
  const int64_t half_height = (y.shape[1] + 1) / 2, half_width = (y.shape[2] + 1) / 2;
  check_plane("y", y, y.shape[0], y.shape[1], y.shape[2], 1);
  check_plane("u", frames.u, y.shape[0], half_height, half_width, 2);
  check_plane("v", frames.v, y.shape[0], half_height, half_width, 2);
  const Colours& m = frames.colours;
  for (const int32_t number : {m.y, m.v_to_red, m.u_to_green, m.v_to_green, m.u_to_blue}) {
    check(number >= INT16_MIN && number <= INT16_MAX, "yuv_to_tiles: a number of the colour matrix is ", number,
          "; needs 16 bits.");
  }
  check_tiles_out("yuv_to_tiles", out, tiling, y.shape[0] * tiling.num_images());
}

void yuv_to_tiles_cpu(const YuvFrames& frames, const TensorView& out, const Tiling& tiling, int num_threads,
                      const std::string& simd) {
  check_yuv_to_tiles(frames, out, tiling);
  check(num_threads >= 0, "yuv_to_tiles: num_threads is ", num_threads, "; needs >= 0 (0: one for each CPU).");
  const InnerLoops& loops = inner_loops("yuv_to_tiles", simd);
  if (frames.y.shape[0] == 0) return;
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
