// The one file that knows Python. Tensors arrive as (address, shape, strides, dtype name, bytes from the address on),
// streams as integers; every call gives the interpreter's lock back while it works.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "frames_to_tiles.h"

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
  info["simd"] = eagle::has_simd() ? "avx2" : "";
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
      [](const View& frames, const View& out, const eagle::Tiling& tiling, int num_threads, bool simd) {
        const py::gil_scoped_release unlocked;
        eagle::frames_to_tiles_cpu(view("frames", frames), view("out", out), tiling, num_threads, simd);
      },
      py::arg("frames"), py::arg("out"), py::arg("tiling"), py::arg("num_threads"), py::arg("simd") = true);

#ifdef EAGLE_CUDA_VERSION
  m.def("frames_to_tiles_workspace_bytes", &eagle::frames_to_tiles_workspace_bytes, py::arg("width_px"),
        py::arg("height_px"), py::arg("tiling"));
  m.def(
      "frames_to_tiles_cuda",
      [](const View& frames, const View& out, const View& workspace, const eagle::Tiling& tiling, int device,
         uintptr_t stream) {
        const py::gil_scoped_release unlocked;
        eagle::frames_to_tiles_cuda(view("frames", frames), view("out", out), view("workspace", workspace), tiling,
                                    device, stream);
      },
      py::arg("frames"), py::arg("out"), py::arg("workspace"), py::arg("tiling"), py::arg("device"), py::arg("stream"));
#endif
}
