// The one file that knows Python. Tensors arrive as (address, shape, strides, dtype name, bytes from the address on),
// streams as integers; every call gives the interpreter's lock back while it works.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "attention_plan.h"
#include "decode_attention.h"
#include "frames_to_tiles.h"
#include "matroska.h"
#include "merge_attention.h"
#include "pack_rows.h"
#include "scatter_visual.h"
#include "yuv_to_rgb.h"
#include "yuv_to_tiles.h"

namespace py = pybind11;

namespace {

using View = std::tuple<uintptr_t, std::vector<int64_t>, std::vector<int64_t>, std::string, int64_t>;

eagle::TensorView view(const std::string& name, const View& v) {
  return eagle::make_view(name, std::get<0>(v), std::get<1>(v), std::get<2>(v), std::get<3>(v), std::get<4>(v));
}

eagle::Tiling make_tiling(int cols, int rows, int tile_px, int patch_px, bool thumbnail, const std::string& pass_order,
                          const std::array<float, 3>& mean, const std::array<float, 3>& stddev) {
  eagle::check(pass_order == "horizontal" || pass_order == "pillow", "frames_to_tiles: pass_order is '", pass_order,
               "'; needs 'horizontal' or 'pillow'.");
  eagle::Tiling tiling;
  tiling.cols = cols;
  tiling.rows = rows;
  tiling.tile_px = tile_px;
  tiling.patch_px = patch_px;
  tiling.thumbnail = thumbnail;
  tiling.order = pass_order == "pillow" ? eagle::PassOrder::kPillow : eagle::PassOrder::kHorizontal;
  for (int c = 0; c < 3; ++c) {
    tiling.mean[c] = mean[c];
    tiling.stddev[c] = stddev[c];
  }
  return tiling;
}

eagle::Colours make_colours(const std::array<int, 6>& colours) {
  const auto& [luma, v_to_red, u_to_green, v_to_green, u_to_blue, black] = colours;
  return eagle::make_colours(luma, v_to_red, u_to_green, v_to_green, u_to_blue, black);
}

eagle::YuvFrames make_yuv_frames(const View& y, const View& u, const View& v, const std::array<int, 6>& colours,
                                 bool cosited_across, bool cosited_down) {
  return {view("y", y), view("u", u), view("v", v), make_colours(colours), cosited_across, cosited_down};
}

eagle::MergeAttention make_merge(const View& out_a, const View& lse_a, const View& out_b, const View& lse_b,
                                 const View& out, const View& lse) {
  return {view("out_a", out_a), view("lse_a", lse_a), view("out_b", out_b),
          view("lse_b", lse_b), view("out", out),     view("lse", lse)};
}

eagle::DecodeAttention make_decode(const View& q, const View& k, const View& v, const View& k_start, const View& k_len,
                                   const View& out, const View& lse, const View& workspace, int64_t max_k_len,
                                   int64_t block_rows, float softmax_scale) {
  return {view("q", q),
          view("k", k),
          view("v", v),
          view("k_start", k_start),
          view("k_len", k_len),
          view("out", out),
          view("lse", lse),
          view("workspace", workspace),
          max_k_len,
          block_rows,
          softmax_scale};
}

eagle::AttentionPlan make_plan(const View& segments, const View& q_tiles, const View& k_tiles, int64_t num_tokens_k,
                               bool causal) {
  return {view("segments", segments), view("q_tiles", q_tiles), view("k_tiles", k_tiles), num_tokens_k, causal};
}

eagle::ScatterVisual make_scatter(const View& text, const View& visual, const View& rows, const View& whole,
                                  bool backward) {
  return {view("text", text), view("visual", visual), view("rows", rows), view("whole", whole), backward};
}

[[maybe_unused]] std::vector<eagle::FrameGroup> frame_groups(const std::vector<std::pair<View, eagle::Tiling>>& pairs) {
  std::vector<eagle::FrameGroup> groups;
  for (const auto& [frames, tiling] : pairs) groups.push_back({view("frames", frames), tiling});
  return groups;
}

template <class T>
py::array_t<T> array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::dict matroska_blocks(int fd, int64_t begin, int64_t end, uint64_t track_number, bool allow_invisible,
                         const py::function& look) {
  eagle::MatroskaBlocks blocks;
  {
    const py::gil_scoped_release unlocked;
    blocks = eagle::matroska_blocks(fd, begin, end, track_number, allow_invisible, [&look] {
      const py::gil_scoped_acquire locked;
      look();  // what it raises goes through to the caller
    });
  }
  py::dict arrays;
  arrays["timestamp"] = array(blocks.timestamp);
  arrays["duration"] = array(blocks.duration);
  arrays["offset"] = array(blocks.offset);
  arrays["size"] = array(blocks.size);
  arrays["is_key"] = array(blocks.is_key);
  arrays["first_byte"] = array(blocks.first_byte);
  return arrays;
}

py::dict build_info() {
  py::dict info;
#ifdef EAGLE_CUDA_VERSION
  info["has_cuda"] = true;
  info["cuda_architectures"] = EAGLE_CUDA_ARCHITECTURES;
  info["cuda_version"] = EAGLE_CUDA_VERSION;
#else
  info["has_cuda"] = false;
  info["cuda_architectures"] = "";
  info["cuda_version"] = "";
#endif
  info["compiler"] = EAGLE_COMPILER;
  info["simd"] = eagle::simd();
  info["num_threads"] = std::thread::hardware_concurrency();
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The native core of eagle_kernels; call it through eagle_kernels.native.";
  py::class_<eagle::Tiling>(m, "Tiling")
      .def(py::init(&make_tiling), py::kw_only(), py::arg("cols"), py::arg("rows"), py::arg("tile_px"),
           py::arg("patch_px"), py::arg("thumbnail"), py::arg("pass_order"), py::arg("mean"), py::arg("std"));

  m.def("build_info", &build_info, "What this build holds and what this CPU offers.");

  m.def(
      "frames_to_tiles_cpu",
      [](const View& frames, const View& out, const eagle::Tiling& tiling, int num_threads, const std::string& simd) {
        const py::gil_scoped_release unlocked;
        eagle::frames_to_tiles_cpu(view("frames", frames), view("out", out), tiling, num_threads, simd);
      },
      py::arg("frames"), py::arg("out"), py::arg("tiling"), py::arg("num_threads"), py::arg("simd") = eagle::simd());

  py::class_<eagle::YuvFrames>(m, "YuvFrames")
      .def(py::init(&make_yuv_frames), py::kw_only(), py::arg("y"), py::arg("u"), py::arg("v"), py::arg("colours"),
           py::arg("cosited_across"), py::arg("cosited_down"));
  m.def(
      "yuv_to_tiles_cpu",
      [](const eagle::YuvFrames& frames, const View& out, const eagle::Tiling& tiling, int num_threads,
         const std::string& simd) {
        const py::gil_scoped_release unlocked;
        eagle::yuv_to_tiles_cpu(frames, view("out", out), tiling, num_threads, simd);
      },
      py::arg("frames"), py::arg("out"), py::arg("tiling"), py::arg("num_threads"), py::arg("simd") = eagle::simd());

  m.def(
      "yuv_to_rgb",
      [](const View& y, const View& u, const View& v, const View& out, const std::array<int, 6>& colours,
         bool cosited_across, const std::string& simd) {
        const py::gil_scoped_release unlocked;
        eagle::yuv_to_rgb(view("y", y), view("u", u), view("v", v), view("out", out), make_colours(colours),
                          cosited_across, simd);
      },
      py::arg("y"), py::arg("u"), py::arg("v"), py::arg("out"), py::arg("colours"), py::arg("cosited_across"),
      py::arg("simd") = eagle::simd());

  m.def(
      "pack_rows",
      [](const View& lengths, int64_t capacity, const View& rows) {
        const py::gil_scoped_release unlocked;
        return eagle::pack_rows(view("lengths", lengths), capacity, view("rows", rows));
      },
      py::arg("lengths"), py::arg("capacity"), py::arg("rows"));

  m.def("matroska_blocks", &matroska_blocks, py::arg("fd"), py::arg("begin"), py::arg("end"), py::arg("track_number"),
        py::arg("allow_invisible"), py::arg("look"));

  py::class_<eagle::MergeAttention>(m, "MergeAttention")
      .def(py::init(&make_merge), py::kw_only(), py::arg("out_a"), py::arg("lse_a"), py::arg("out_b"), py::arg("lse_b"),
           py::arg("out"), py::arg("lse"));
  m.def("merge_attention_cpu", &eagle::merge_attention_cpu, py::call_guard<py::gil_scoped_release>(),
        py::arg("tensors"), py::arg("num_threads"));

  py::class_<eagle::DecodeAttention>(m, "DecodeAttention")
      .def(py::init(&make_decode), py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("k_start"),
           py::arg("k_len"), py::arg("out"), py::arg("lse"), py::arg("workspace"), py::arg("max_k_len"),
           py::arg("block_rows"), py::arg("softmax_scale"));
  m.def("decode_attention_workspace_floats", &eagle::decode_attention_workspace_floats, py::arg("num_sequences"),
        py::arg("num_heads"), py::arg("head_width"), py::arg("max_k_len"));
  m.def("decode_attention_cpu", &eagle::decode_attention_cpu, py::call_guard<py::gil_scoped_release>(),
        py::arg("tensors"), py::arg("num_threads"), py::arg("simd") = true);

  py::class_<eagle::AttentionPlan>(m, "AttentionPlan")
      .def(py::init(&make_plan), py::kw_only(), py::arg("segments"), py::arg("q_tiles"), py::arg("k_tiles"),
           py::arg("num_tokens_k"), py::arg("causal"));
  m.def("attention_plan_cpu", &eagle::attention_plan_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("plan"));
  m.def("attention_plan_workspace_ints", &eagle::attention_plan_workspace_ints, py::arg("plan"));

  py::class_<eagle::ScatterVisual>(m, "ScatterVisual")
      .def(py::init(&make_scatter), py::kw_only(), py::arg("text"), py::arg("visual"), py::arg("rows"),
           py::arg("whole"), py::arg("backward"));
  m.def("scatter_visual_cpu", &eagle::scatter_visual_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("tensors"),
        py::arg("num_threads"));

#ifdef EAGLE_CUDA_VERSION
  m.def("scatter_visual_cuda", &eagle::scatter_visual_cuda, py::call_guard<py::gil_scoped_release>(),
        py::arg("tensors"), py::arg("device"), py::arg("stream"));
  m.def(
      "attention_plan_cuda",
      [](const eagle::AttentionPlan& plan, const View& workspace, int device, uintptr_t stream) {
        const py::gil_scoped_release unlocked;
        eagle::attention_plan_cuda(plan, view("workspace", workspace), device, stream);
      },
      py::arg("plan"), py::arg("workspace"), py::arg("device"), py::arg("stream"));
  m.def("merge_attention_cuda", &eagle::merge_attention_cuda, py::call_guard<py::gil_scoped_release>(),
        py::arg("tensors"), py::arg("device"), py::arg("stream"));
  m.def("decode_attention_cuda", &eagle::decode_attention_cuda, py::call_guard<py::gil_scoped_release>(),
        py::arg("tensors"), py::arg("device"), py::arg("stream"));
  m.def(
      "frames_to_tiles_workspace_bytes",
      [](const std::vector<std::pair<View, eagle::Tiling>>& groups) {
        return eagle::frames_to_tiles_workspace_bytes(frame_groups(groups));
      },
      py::arg("groups"));
  m.def(
      "frames_to_tiles_cuda",
      [](const std::vector<std::pair<View, eagle::Tiling>>& groups, const View& out, const View& workspace, int device,
         uintptr_t stream) {
        const py::gil_scoped_release unlocked;
        eagle::frames_to_tiles_cuda(frame_groups(groups), view("out", out), view("workspace", workspace), device,
                                    stream);
      },
      py::arg("groups"), py::arg("out"), py::arg("workspace"), py::arg("device"), py::arg("stream"));
  m.def("yuv_to_tiles_workspace_bytes", &eagle::yuv_to_tiles_workspace_bytes, py::arg("frames"), py::arg("tiling"));
  m.def(
      "yuv_to_tiles_cuda",
      [](const eagle::YuvFrames& frames, const View& out, const eagle::Tiling& tiling, const View& workspace,
         int device, uintptr_t stream) {
        const py::gil_scoped_release unlocked;
        eagle::yuv_to_tiles_cuda(frames, view("out", out), tiling, view("workspace", workspace), device, stream);
      },
      py::arg("frames"), py::arg("out"), py::arg("tiling"), py::arg("workspace"), py::arg("device"), py::arg("stream"));
#endif
}
