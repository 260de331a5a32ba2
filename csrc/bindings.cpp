// Python module advnas_ext._C: every native entry point, a line each. The operators of torch.ops.advnas_ext are registered where
// they are defined (gate.cpp).
#include <torch/csrc/utils/pybind.h>
#ifdef ADVNAS_SHIM
#include <pybind11/stl.h>
#include <shim.h>
#endif

#include "cell.h"
#include "device.h"
#include "head.h"
#include "kernels/cpu/isa.h"
#include "kernels/recurrent_node.h"
#include "recurrent.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  using advnas::Before;
  using advnas::Kind;
  using advnas::Piece;
  py::enum_<Kind>(m, "Kind", py::module_local())
      .value("ZERO", Kind::kZero)
      .value("IDENTITY", Kind::kIdentity)
      .value("AVG_POOL", Kind::kAvgPool)
      .value("CONVOLUTION", Kind::kConvolution);
  py::enum_<Before>(m, "Before", py::module_local())
      .value("NOTHING", Before::kNothing)
      .value("RELU", Before::kRelu)
      .value("MEAN_2X2", Before::kMean2);
  py::class_<Piece>(m, "Piece", py::module_local())
      .def(py::init<Kind, Before, bool, int64_t, int64_t, double, double>(), py::arg("kind"),
           py::arg("before") = Before::kNothing, py::arg("normalise") = false, py::arg("stride") = 1, py::arg("dilation") = 1,
           py::arg("eps") = 0.0, py::arg("momentum") = 0.0);
  m.def("cell", &advnas::cell, py::arg("x"), py::arg("gates"), py::arg("gate_values"), py::arg("offsets"),
        py::arg("offset_targets"), py::arg("pieces"), py::arg("links"), py::arg("num_nodes"), py::arg("running"),
        py::arg("tensors"), py::call_guard<py::gil_scoped_release>());
  m.def("head", &advnas::head, py::arg("x"), py::arg("gamma"), py::arg("beta"), py::arg("running_mean"), py::arg("running_var"),
        py::arg("batches_tracked"), py::arg("use_running"), py::arg("eps"), py::arg("momentum"),
        py::call_guard<py::gil_scoped_release>());
  m.attr("cuda") = advnas::kHasDevice;
  py::enum_<advnas::RecurrentOp>(m, "RecurrentOp", py::arithmetic(), py::module_local())
      .value("IDENTITY", advnas::kRecurrentIdentity)
      .value("TANH", advnas::kRecurrentTanh)
      .value("SIGMOID", advnas::kRecurrentSigmoid)
      .value("RELU", advnas::kRecurrentRelu)
      .value("NONE", advnas::kNumRecurrentOps);
  m.def("recurrent", &advnas::recurrent, py::arg("x"), py::arg("h"), py::arg("gates"), py::arg("gate_values"), py::arg("offsets"),
        py::arg("ops"), py::arg("weights"), py::arg("x_mask"), py::arg("h_mask"), py::arg("whole"));
  m.attr("MAX_RECURRENT_NODES") = advnas::kMaxRecurrentSources;
#ifdef ADVNAS_SHIM  // {(kernel, grid, threads of a block, shared bytes): launches}
  m.def("launch_counts", &cuda_shim::launch_counts);
  m.def("clear_launch_counts", &cuda_shim::clear_launch_counts);
#endif
  m.def("isa", &advnas::cpu::isa_name);
  m.def("isas", &advnas::cpu::isa_names);
}
