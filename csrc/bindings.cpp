// Python module advnas_ext._C: every native entry point, a line each. The operators of torch.ops.advnas_ext are registered where
// they are defined (gate.cpp, recurrent.cpp).
#include <c10/util/Exception.h>
#include <torch/csrc/utils/pybind.h>
#ifdef ADVNAS_SHIM
#include <shim.h>
#endif

#include "cuda/conv3x3.h"
#include "device.h"
#include "entry_points.h"
#include "kernels/batch_norm_math.h"
#include "kernels/cpu/isa.h"
#include "kernels/recurrent_node.h"

namespace {

// torch 2.6 leaves it to pybind11, for which a c10::ValueError is any error.
void translate(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const c10::ValueError& found) {
    PyErr_SetString(PyExc_ValueError, found.what_without_backtrace());
  }
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  py::register_local_exception_translator(translate);
  using advnas::Arrival;
  using advnas::Kind;
  using advnas::Piece;
  using advnas::Prologue;
  using advnas::Step;
  py::enum_<Arrival>(m, "Arrival", py::module_local())
      .value("IDENTITY", Arrival::kIdentity)
      .value("AVG_POOL", Arrival::kAvgPool)
      .value("MAX_POOL", Arrival::kMaxPool);
  py::enum_<Prologue>(m, "Prologue", py::module_local())
      .value("NOTHING", Prologue::kNothing)
      .value("RELU", Prologue::kRelu)
      .value("MEAN_2X2", Prologue::kMean2);
  // A piece that gives nothing; an operation without weights; a convolution.
  py::class_<Piece>(m, "Piece", py::module_local())
      .def_static(
          "zero",
          [](int64_t stride) {
            TORCH_CHECK_VALUE(stride > 0, "advnas_ext: stride must be positive, got ", stride);
            Piece nothing;
            nothing.stride = stride;
            return nothing;
          },
          py::arg("stride") = 1)
      .def(py::init([](Arrival arrival) { return Piece{Kind::kArrival, arrival}; }), py::arg("arrival"))
      .def_static("baseline", [] { return Piece{Kind::kBaseline}; })
      .def(py::init([](Prologue prologue, bool normalise, int64_t stride, int64_t dilation, double eps, double momentum) {
             TORCH_CHECK_VALUE(stride > 0 && dilation > 0, "advnas_ext: stride and dilation must be positive, got ", stride,
                               " and ", dilation);
             return Piece{Kind::kConvolution, Arrival::kIdentity, prologue, normalise, stride, dilation, eps, momentum};
           }),
           py::arg("prologue"), py::arg("normalise") = false, py::arg("stride") = 1, py::arg("dilation") = 1,
           py::arg("eps") = 0.0, py::arg("momentum") = 0.0);
  using Optional = const std::optional<at::Tensor>&;
  py::class_<Step>(m, "Step", py::module_local())
      .def(py::init([](const Piece& piece, Optional weight, Optional depthwise, Optional bias, Optional gamma, Optional beta,
                       Optional running_mean, Optional running_var, Optional batches_tracked, bool use_running) {
             const auto or_none = [](Optional tensor) { return tensor ? tensor->resolve_neg() : at::Tensor(); };
             return Step{piece,          use_running,   or_none(weight),       or_none(depthwise),   or_none(bias),
                         or_none(gamma), or_none(beta), or_none(running_mean), or_none(running_var), or_none(batches_tracked)};
           }),
           py::arg("piece"), py::arg("weight") = py::none(), py::arg("depthwise") = py::none(), py::arg("bias") = py::none(),
           py::arg("gamma") = py::none(), py::arg("beta") = py::none(), py::arg("running_mean") = py::none(),
           py::arg("running_var") = py::none(), py::arg("batches_tracked") = py::none(), py::arg("use_running") = false)
      .def_readonly("piece", &Step::piece)
      .def("with_weights_in", [](const Step& step, const at::Tensor& like) { return step.with_weights_in(like.scalar_type()); });
  m.def("cell", &advnas::cell, py::arg("x"), py::arg("gates"), py::arg("gate_values"), py::arg("offsets"),
        py::arg("offset_targets"), py::arg("steps"), py::arg("num_nodes"), py::call_guard<py::gil_scoped_release>());
  m.def("head", &advnas::head, py::arg("x"), py::arg("gamma"), py::arg("beta"), py::arg("running_mean"), py::arg("running_var"),
        py::arg("batches_tracked"), py::arg("use_running"), py::arg("eps"), py::arg("momentum"),
        py::call_guard<py::gil_scoped_release>());
  m.attr("cuda") = advnas::kHasDevice;
#ifdef ADVNAS_DEVICE
  m.def("uses_own_conv3x3", &advnas::cuda::uses_own_conv3x3);
  m.def("use_own_conv3x3", &advnas::cuda::use_own_conv3x3, py::arg("own"));
#endif
  m.attr("CUMULATIVE") = advnas::kCumulative;
  py::enum_<advnas::RecurrentOp>(m, "RecurrentOp", py::arithmetic(), py::module_local())
      .value("IDENTITY", advnas::kRecurrentIdentity)
      .value("TANH", advnas::kRecurrentTanh)
      .value("SIGMOID", advnas::kRecurrentSigmoid)
      .value("RELU", advnas::kRecurrentRelu)
      .value("NONE", advnas::kNumRecurrentOps);
  m.attr("MAX_RECURRENT_NODES") = advnas::kMaxRecurrentSources;
#ifdef ADVNAS_SHIM
  m.def("launches", [] {  // (kernel, grid, threads of a block, shared bytes, least and moved bytes, FLOPs)
    py::list found;
    for (const cuda_shim::Launch& launch : cuda_shim::launches()) {
      const auto& [grid, block, work] = std::tie(launch.grid, launch.block, launch.work);
      found.append(py::make_tuple(launch.kernel, py::make_tuple(grid.x, grid.y, grid.z), block.x * block.y * block.z,
                                  launch.shared_bytes, work.least, work.moved, work.flops));
    }
    return found;
  });
  m.def("clear_launches", &cuda_shim::clear_launches);
  m.def("run_kernels", [](bool run) { cuda_shim::runs_kernels = run; }, py::arg("run"));
#endif
  m.def("isa", &advnas::cpu::isa_name);
  m.def("isas", &advnas::cpu::isa_names);
}
