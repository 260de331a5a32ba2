// Python module advnas_ext._C: every native entry point, a line each. The operators of torch.ops.advnas_ext are registered where
// they are defined (gate.cpp).
#include <torch/csrc/utils/pybind.h>

#include "cell.h"
#include "kernels/cpu/isa.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  using advnas::Piece;
  py::enum_<Piece>(m, "Piece")
      .value("ZERO", Piece::kZero)
      .value("IDENTITY", Piece::kIdentity)
      .value("AVG_POOL", Piece::kAvgPool)
      .value("RELU_CONV_BN", Piece::kReluConvBn);
  m.def("cell", &advnas::cell, py::arg("x"), py::arg("gates"), py::arg("offsets"), py::arg("pieces"), py::arg("num_nodes"),
        py::arg("tensors"), py::arg("use_running_stats"), py::arg("eps"), py::arg("momentum"),
        py::call_guard<py::gil_scoped_release>());
  m.def("isa", &advnas::cpu::isa_name);
  m.def("isas", &advnas::cpu::isa_names);
}
