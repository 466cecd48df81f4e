// Binds the scheduler as tsrun._core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "scheduler.hpp"

namespace py = pybind11;
using namespace py::literals;
using tsrun::RequestId, tsrun::Scheduler, tsrun::StepId, tsrun::StepPlan, tsrun::Token;

namespace {

// Not forcecast: ids of another width or floats are an error, not a conversion.
using Tokens = py::array_t<Token, py::array::c_style>;

// The Python StepPlan: it keeps the scheduler alive, and refuses to show arrays that a later step has overwritten.
struct PlanView {
  std::shared_ptr<Scheduler> scheduler;
  StepId step;

  const StepPlan& plan() const { return scheduler->outstanding(step); }
};

std::span<const Token> flat(const Tokens& tokens, const char* name) {
  if (tokens.ndim() != 1) throw std::invalid_argument(std::string(name) + " must have one dimension");
  return {tokens.data(), static_cast<std::size_t>(tokens.size())};
}

// An array over the scheduler's memory; `owner`, its base, keeps that memory. Writeable, since torch warns of arrays
// that are not; the scheduler itself never reads them back.
template <typename Shown, typename Stored>
py::array show(const std::vector<Stored>& values, const py::object& owner, std::vector<py::ssize_t> shape) {
  static_assert(sizeof(Shown) == sizeof(Stored));
  return py::array(py::dtype::of<Shown>(), std::move(shape), values.data(), owner);
}

template <auto Member, typename Shown>
py::array vector_of(const py::object& self) {
  const auto& values = self.cast<const PlanView&>().plan().*Member;
  return show<Shown>(values, self, {static_cast<py::ssize_t>(values.size())});
}

py::array spans_of(const py::object& self) {
  const StepPlan& plan = self.cast<const PlanView&>().plan();
  return show<std::int32_t>(plan.spans, self, {static_cast<py::ssize_t>(plan.requests.size()), 2});
}

py::array tables_of(const py::object& self) {
  const StepPlan& plan = self.cast<const PlanView&>().plan();
  return show<std::int32_t>(plan.tables, self, {static_cast<py::ssize_t>(plan.requests.size()), plan.table_width});
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The scheduler: which tokens of which requests run in the next step.";

  py::class_<PlanView>(module, "StepPlan")
      .def_property_readonly("step", [](const PlanView& view) { return static_cast<std::int64_t>(view.step); })
      .def_property_readonly("requests", &vector_of<&StepPlan::requests, std::int64_t>)
      .def_property_readonly("ids", &vector_of<&StepPlan::ids, std::int32_t>)
      .def_property_readonly("positions", &vector_of<&StepPlan::positions, std::int32_t>)
      .def_property_readonly("slots", &vector_of<&StepPlan::slots, std::int32_t>)
      .def_property_readonly("spans", &spans_of)
      .def_property_readonly("lengths", &vector_of<&StepPlan::lengths, std::int32_t>)
      .def_property_readonly("last", &vector_of<&StepPlan::last, std::int32_t>)
      .def_property_readonly("tables", &tables_of)
      .def_property_readonly("samples", &vector_of<&StepPlan::samples, bool>);

  py::class_<Scheduler, std::shared_ptr<Scheduler>>(module, "Scheduler")
      .def(py::init([](std::int32_t num_pages, std::int32_t page_size, std::int32_t max_sequences,
                       std::int32_t max_step_tokens, std::int32_t max_context, std::int32_t num_groups,
                       const std::vector<std::pair<std::int32_t, std::int32_t>>& paddings) {
             std::vector<tsrun::Padding> given;
             for (const auto& [tokens, multiple] : paddings) given.push_back({tokens, multiple});
             return std::make_shared<Scheduler>(
                 tsrun::Limits{num_pages, page_size, max_sequences, max_step_tokens, max_context, num_groups},
                 std::move(given));
           }),
           py::kw_only(), "num_pages"_a, "page_size"_a, "max_sequences"_a, "max_step_tokens"_a, "max_context"_a,
           "num_groups"_a = 1, "paddings"_a = py::list())
      .def(
          "submit",
          [](Scheduler& self, std::int64_t request, const Tokens& prompt, std::int32_t max_new_tokens) {
            self.submit(RequestId{request}, flat(prompt, "prompt"), max_new_tokens);
          },
          "request"_a, "prompt"_a, "max_new_tokens"_a)
      .def(
          "abort", [](Scheduler& self, std::int64_t request) { self.abort(RequestId{request}); }, "request"_a)
      .def(
          "finish", [](Scheduler& self, std::int64_t request) { self.finish(RequestId{request}); }, "request"_a)
      .def("plan",
           [](const std::shared_ptr<Scheduler>& self) -> std::optional<PlanView> {
             const StepPlan* plan = self->plan();
             if (plan == nullptr) return std::nullopt;
             return PlanView{self, plan->step};
           })
      .def(
          "commit",
          [](Scheduler& self, std::int64_t step, const Tokens& tokens) {
            self.commit(StepId{step}, flat(tokens, "tokens"));
          },
          "step"_a, "tokens"_a)
      .def_property_readonly("num_waiting", &Scheduler::num_waiting)
      .def_property_readonly("num_running", &Scheduler::num_running)
      .def_property_readonly("num_free_pages", &Scheduler::num_free_pages)
      .def_property_readonly("preemptions", &Scheduler::preemptions);
}
