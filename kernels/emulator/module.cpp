// Binds the machine as tskernels._ptx; tskernels/emulator.py is what others call.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "machine.hpp"
#include "program.hpp"

namespace py = pybind11;

namespace {

using ptx::Fault, ptx::Launch, ptx::Machine, ptx::TensorMap;

// The arrays, each whole; whether a kernel may write it, and whether it holds values yet.
using Arrays = std::vector<std::tuple<py::buffer, bool, bool>>;

void pass(Machine& machine, std::size_t at, const py::tuple& argument, const std::vector<std::uint64_t>& addresses) {
  const auto kind = argument[0].cast<std::string>();
  if (at >= machine.num_parameters())
    throw Fault("launch", 0, "more arguments than the kernel has parameters",
                "it has " + std::to_string(machine.num_parameters()));
  if (kind == "pointer") {
    const std::uint64_t address = addresses.at(argument[1].cast<std::size_t>()) + argument[2].cast<std::uint64_t>();
    machine.set_parameter(at, &address, 8);
  } else if (kind == "bytes") {
    const auto bytes = argument[1].cast<std::string>();
    machine.set_parameter(at, bytes.data(), bytes.size());
  } else {
    TensorMap map;
    map.address = addresses.at(argument[1].cast<std::size_t>()) + argument[2].cast<std::uint64_t>();
    map.element_bytes = argument[3].cast<std::uint32_t>();
    map.sizes = argument[4].cast<std::vector<std::uint64_t>>();
    map.strides = argument[5].cast<std::vector<std::uint64_t>>();
    map.box = argument[6].cast<std::vector<std::uint32_t>>();
    map.swizzle = argument[7].cast<std::uint32_t>();
    map.fill_nan = argument[8].cast<bool>();
    if (machine.parameter_size(at) < 64)
      throw Fault("launch", 0, "parameter " + std::to_string(at) + " is no tensor map", "pass what the kernel takes");
    std::array<char, 64> bytes{};
    std::memcpy(bytes.data(), Machine::kMapMagic, sizeof Machine::kMapMagic);
    const std::uint32_t number = machine.add_map(std::move(map));
    std::memcpy(bytes.data() + sizeof Machine::kMapMagic, &number, sizeof number);
    machine.set_parameter(at, bytes.data(), bytes.size());
  }
}

py::dict run(const std::string& text, const std::string& kernel, const std::array<std::uint32_t, 3>& grid,
             const std::array<std::uint32_t, 3>& block, const std::array<std::uint32_t, 3>& cluster,
             std::uint32_t shared_bytes, bool strict, std::uint64_t max_instructions, const Arrays& arrays,
             const std::vector<py::tuple>& arguments, bool dependent,
             const std::vector<std::tuple<std::size_t, std::uint64_t, std::uint64_t>>& unfinished) {
  ptx::Program program = ptx::parse(text);
  Machine machine(program, kernel, Launch{grid, block, cluster, shared_bytes, strict, max_instructions, dependent});
  const std::size_t first_array = machine.num_buffers();
  std::vector<std::uint64_t> addresses;
  std::vector<py::buffer_info> held;
  for (const auto& [array, writable, initialized] : arrays) {
    held.push_back(array.request(writable));
    addresses.push_back(machine.add_buffer(static_cast<std::uint8_t*>(held.back().ptr),
                                           static_cast<std::uint64_t>(held.back().size * held.back().itemsize),
                                           writable, initialized));
  }
  for (std::size_t i = 0; i < arguments.size(); i++) pass(machine, i, arguments[i], addresses);
  for (const auto& [array, offset, size] : unfinished) machine.leave_unfinished(first_array + array, offset, size);
  ptx::Counts counts;
  {
    const py::gil_scoped_release release;
    counts = machine.run();
  }
  py::dict result;
  result["instructions"] = counts.instructions;
  result["products"] = counts.products;
  result["copies"] = counts.copies;
  return result;
}

}  // namespace

PYBIND11_MODULE(_ptx, m) {
  static py::handle fault = py::exception<Fault>(m, "Fault").release();
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Fault& error) {
      PyErr_SetObject(fault.ptr(), py::make_tuple(error.kind, error.line, std::string(error.what())).ptr());
    }
  });
  m.def("run", &run);
}
