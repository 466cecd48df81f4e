// Python's view of the kernels: teams, programs, and single calls. See tskernels/_cpu.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <system_error>

#include "program.hpp"
#include "shared_memory.hpp"

namespace py = pybind11;

namespace tsk {
namespace {

DType dtype_of(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "bf16") return DType::bf16;
  if (name == "i32") return DType::i32;
  if (name == "i64") return DType::i64;
  if (name == "u8") return DType::u8;
  if (name == "f8e4m3") return DType::f8e4m3;
  throw std::invalid_argument("no kernel here takes elements of type `" + name + "`");
}

Space space_of(const std::string& name) {
  if (name == "fixed") return Space::fixed;
  if (name == "T") return Space::tokens;
  if (name == "S") return Space::sequences;
  throw std::invalid_argument("unknown region `" + name + "`; known: fixed, T, S");
}

Extent extent_of(const py::handle& given) {
  if (!py::isinstance<py::tuple>(given)) return {given.cast<std::int64_t>(), 0};
  const auto [symbol, divisor] = given.cast<std::pair<std::string, std::int64_t>>();
  if (symbol.size() != 1 || std::string("TSP").find(symbol) == std::string::npos || divisor < 1)
    throw std::invalid_argument("unknown extent `" + symbol + "`; known: T, S, P");
  return {divisor, symbol[0]};
}

std::vector<Extent> extents_of(const py::handle& given) {
  std::vector<Extent> found;
  for (const py::handle& extent : given) found.push_back(extent_of(extent));
  return found;
}

Operand operand_of(const py::tuple& given) {
  if (given.size() != 7)
    throw std::invalid_argument("an operand is (region, address, row_bytes, offset, dtype, sizes, strides)");
  return {space_of(given[0].cast<std::string>()),
          given[1].cast<std::uint64_t>(),
          given[2].cast<std::int64_t>(),
          given[3].cast<std::int64_t>(),
          dtype_of(given[4].cast<std::string>()),
          extents_of(given[5]),
          extents_of(given[6])};
}

std::vector<Operand> operands_of(const std::vector<py::tuple>& given) {
  std::vector<Operand> found;
  for (const py::tuple& operand : given) found.push_back(operand_of(operand));
  return found;
}

void call(Team& team, const std::string& kernel, const std::vector<py::tuple>& operands, const py::tuple& out,
          const std::vector<double>& numbers, const std::vector<float>& constants, std::shared_ptr<RankGroup> group) {
  static thread_local const auto arena = std::make_shared<Arena>();  // its scratch memory serves the next call
  Program program(arena, 0, 0);
  program.add(kernel, operands_of(operands), operand_of(out), numbers, constants, std::move(group));
  const py::gil_scoped_release released;
  program.run(team, {});
}

}  // namespace
}  // namespace tsk

PYBIND11_MODULE(_cpu, m) {
  using namespace tsk;
  m.def("isa", &isa);
  m.def("has_isa", [](const std::string& name) { return has_isa(name.c_str()); }, py::arg("name"));
  m.def("use_isa", [](const std::string& name) { use_isa(name.c_str()); }, py::arg("name"));
  m.def("has_kernel", [](const std::string& name) { return find_kernel(name.c_str()) != nullptr; }, py::arg("name"));
  py::class_<Team>(m, "Team")
      .def(py::init<int, const std::vector<int>&, int>(), py::arg("num_workers"), py::arg("cpus") = std::vector<int>{},
           py::arg("spins") = patient_spins)
      .def_property_readonly("num_workers", &Team::num_workers);
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const std::system_error& error) {
      py::set_error(PyExc_OSError, error.what());
    }
  });
  py::class_<Segment, std::shared_ptr<Segment>>(m, "Segment")
      .def_static("create", &Segment::create, py::arg("name"), py::arg("num_ranks"), py::arg("num_areas"))
      .def_static("open", &Segment::open, py::arg("name"), py::arg("num_ranks"), py::arg("num_areas"), py::arg("rank"))
      .def_static("unlink", &Segment::unlink, py::arg("name"))
      .def("has", &Segment::has, py::arg("rank"))
      .def("leave", &Segment::leave);
  py::class_<RankGroup, std::shared_ptr<RankGroup>>(m, "RankGroup")
      .def(py::init<>())
      .def(py::init<std::shared_ptr<Segment>, int, const std::vector<int>&, int, int, double>(), py::arg("segment"),
           py::arg("area"), py::arg("members"), py::arg("rank"), py::arg("spins"), py::arg("timeout_seconds"))
      .def_property_readonly("rank", &RankGroup::rank)
      .def_property_readonly("size", &RankGroup::size);
  py::class_<Arena, std::shared_ptr<Arena>>(m, "Arena").def(py::init<>());
  py::class_<Program>(m, "Program")
      .def(py::init<std::shared_ptr<Arena>, std::int64_t, std::int64_t>(), py::arg("arena"), py::arg("token_bytes"),
           py::arg("sequence_bytes"))
      .def(
          "add",
          [](Program& program, const std::string& kernel, const std::vector<py::tuple>& operands, const py::tuple& out,
             const std::vector<double>& numbers, const std::vector<float>& constants,
             std::shared_ptr<RankGroup> group) {
            program.add(kernel, operands_of(operands), operand_of(out), numbers, constants, std::move(group));
          },
          py::arg("kernel"), py::arg("operands"), py::arg("out"), py::arg("numbers"), py::arg("constants"),
          py::arg("group") = nullptr)
      .def(
          "run",
          [](Program& program, Team& team, std::int64_t T, std::int64_t S, std::int64_t P) {
            program.run(team, {T, S, P});
          },
          py::arg("team"), py::arg("T"), py::arg("S"), py::arg("P"), py::call_guard<py::gil_scoped_release>())
      .def(
          "measure",
          [](Program& program, Team& team, std::int64_t T, std::int64_t S, std::int64_t P) {
            std::vector<double> seconds;
            {
              const py::gil_scoped_release released;
              seconds = program.measure(team, {T, S, P});
            }
            std::vector<std::pair<std::string, double>> found;
            for (int i = 0; i < program.num_calls(); ++i) found.emplace_back(program.kernel_name(i), seconds[i]);
            return found;
          },
          py::arg("team"), py::arg("T"), py::arg("S"), py::arg("P"))
      .def(
          "address",
          [](const Program& program, const py::tuple& operand) {
            return reinterpret_cast<std::uintptr_t>(program.address(operand_of(operand)));
          },
          py::arg("operand"))
      .def_property_readonly("num_calls", &Program::num_calls)
      .def_property_readonly("num_barriers", &Program::num_barriers);
  m.def("call", &call, py::arg("team"), py::arg("kernel"), py::arg("operands"), py::arg("out"), py::arg("numbers"),
        py::arg("constants"), py::arg("group") = nullptr);
}
