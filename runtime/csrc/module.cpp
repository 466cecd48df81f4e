// Binds the scheduler, the sampler, the lookup of drafts and the vocabulary as tsrun._core. What the calls mean is in
// tsrun/_core.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lookup.hpp"
#include "philox.hpp"
#include "sampling.hpp"
#include "scheduler.hpp"
#include "vocabulary.hpp"

namespace py = pybind11;
using namespace py::literals;
using tsrun::RequestId, tsrun::Sampler, tsrun::Scheduler, tsrun::StepId, tsrun::StepPlan, tsrun::Token,
    tsrun::TransferId, tsrun::UserId;

namespace {

// Not forcecast: ids of another width or floats are an error, not a conversion.
using Ints = py::array_t<std::int32_t, py::array::c_style>;
using Pairs = std::vector<std::pair<std::int32_t, std::int32_t>>;

// The Python StepPlan: it keeps the scheduler alive, and refuses to show arrays that a later step has overwritten.
struct PlanView {
  std::shared_ptr<Scheduler> scheduler;
  StepId step;

  const StepPlan& plan() const { return scheduler->outstanding(step); }
};

std::span<const std::int32_t> flat(const Ints& values, const char* name) {
  if (values.ndim() != 1) throw std::invalid_argument(std::string(name) + " must have one dimension");
  return {values.data(), static_cast<std::size_t>(values.size())};
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

py::array copied(const std::vector<std::int32_t>& values, std::vector<py::ssize_t> shape) {
  return py::array(py::dtype::of<std::int32_t>(), std::move(shape), values.data());
}

// Of arrays without a bound, which may move with a later step: a copy.
template <auto Member, py::ssize_t width>
py::array copied_rows_of(const py::object& self) {
  const auto& values = self.cast<const PlanView&>().plan().*Member;
  return copied(values, {static_cast<py::ssize_t>(values.size()) / width, width});
}

// [values / width, width]
template <auto Member, py::ssize_t width>
py::array rows_of(const py::object& self) {
  const auto& values = self.cast<const PlanView&>().plan().*Member;
  return show<std::int32_t>(values, self, {static_cast<py::ssize_t>(values.size()) / width, width});
}

py::array slots_of(const py::object& self) {
  const StepPlan& plan = self.cast<const PlanView&>().plan();
  const auto num_tokens = static_cast<py::ssize_t>(plan.ids.size());
  return show<std::int32_t>(plan.slots, self, {static_cast<py::ssize_t>(plan.slots.size()) / num_tokens, num_tokens});
}

std::shared_ptr<Scheduler> make(std::int32_t num_pages, std::int32_t page_size, std::int32_t max_sequences,
                                std::int32_t max_step_tokens, std::int32_t max_context, const Pairs& windows,
                                const Pairs& states, std::int32_t num_rank_groups, const Pairs& paddings,
                                std::int32_t num_host_pages, std::int32_t depth, bool prefix_cache,
                                std::uint64_t name_space, bool events, double aging_seconds, double floor,
                                std::int32_t scored_rows) {
  tsrun::CacheLayout caches{page_size, {{tsrun::CacheKind::full, num_pages}}};
  for (const auto& [extent, pages] : windows) caches.groups.push_back({tsrun::CacheKind::window, pages, extent});
  for (const auto& [extent, pages] : states) caches.groups.push_back({tsrun::CacheKind::state, pages, extent});
  std::vector<tsrun::Padding> given;
  for (const auto& [tokens, multiple] : paddings) given.push_back({tokens, multiple});
  const tsrun::Limits limits{std::move(caches), max_sequences, max_step_tokens, max_context, num_rank_groups,
                             num_host_pages,    depth};
  return std::make_shared<Scheduler>(
      limits, tsrun::Policy{prefix_cache, name_space, events, aging_seconds, floor, scored_rows}, std::move(given));
}

void submit(Scheduler& self, std::int64_t request, const Ints& prompt, std::int32_t max_new_tokens, std::int64_t user,
            std::int32_t priority, double deadline, std::uint64_t salt, std::int32_t device_drafts, bool needs_token,
            bool scores_prompt, double now) {
  const std::span<const Token> tokens = flat(prompt, "prompt");
  const py::gil_scoped_release release;
  self.submit(RequestId{request}, tokens, max_new_tokens,
              {UserId{user}, priority, deadline, salt, device_drafts, needs_token, scores_prompt}, now);
}

std::optional<PlanView> plan(const std::shared_ptr<Scheduler>& self, double now) {
  const py::gil_scoped_release release;
  const StepPlan* planned = self->plan(now);
  if (planned == nullptr) return std::nullopt;
  return PlanView{self, planned->step};
}

void commit(Scheduler& self, std::int64_t step, const Ints& tokens, const std::optional<Ints>& counts, double now) {
  const std::span<const Token> made = flat(tokens, "tokens");
  std::optional<std::span<const std::int32_t>> each;
  if (counts) each = flat(*counts, "counts");
  const py::gil_scoped_release release;
  self.commit(StepId{step}, made, each, now);
}

py::list transfers(Scheduler& self) {
  py::list started;
  for (const tsrun::Transfer* transfer : self.take_transfers()) {
    std::vector<std::int32_t> pairs;
    for (const auto& [device, host] : transfer->pairs) pairs.insert(pairs.end(), {number(device), number(host)});
    const char* kind = transfer->kind == tsrun::Transfer::Kind::store ? "store" : "load";
    started.append(py::make_tuple(number(transfer->id), kind, number(transfer->ranks),
                                  copied(pairs, {static_cast<py::ssize_t>(pairs.size()) / 2, 2})));
  }
  return started;
}

py::list page_events(Scheduler& self) {
  py::list events;
  for (const tsrun::PageEvent& event : self.take_events()) {
    events.append(py::make_tuple(event.stored ? "stored" : "removed", number(event.ranks), event.hash, event.parent,
                                 copied(event.tokens, {static_cast<py::ssize_t>(event.tokens.size())})));
  }
  return events;
}

py::list ended(Scheduler& self) {
  py::list all;
  for (const auto& [request, why] : self.take_ended()) all.append(py::make_tuple(number(request), why));
  return all;
}

py::list running(const Scheduler& self) {
  py::list all;
  for (const tsrun::Standing& one : self.running()) {
    all.append(py::make_tuple(number(one.request), tsrun::state_names[static_cast<std::size_t>(one.state)],
                              one.prompt_length, one.length, one.num_computed, one.num_pages));
  }
  return all;
}

py::list transitions() {
  py::list all;
  for (std::size_t state = 0; state + 1 < tsrun::num_states; ++state) {
    for (std::size_t event = 0; event < tsrun::num_events; ++event) {
      const auto from = static_cast<tsrun::State>(state);
      const auto seen = static_cast<tsrun::Event>(event);
      const std::optional<tsrun::Edge> edge = tsrun::find_edge(from, seen);
      const char* next = edge ? tsrun::state_names[static_cast<std::size_t>(edge->to)] : "";
      const std::string_view why = edge ? edge->meaning : tsrun::reason_against(from, seen);
      all.append(py::make_tuple(tsrun::state_names[state], tsrun::event_names[event], next, std::string(why)));
    }
  }
  return all;
}

// A vocabulary with the arrays that it looks into.
struct HeldVocabulary {
  std::vector<py::object> arrays;
  tsrun::Vocabulary vocabulary;
};

std::unique_ptr<HeldVocabulary> hold(const py::array_t<std::uint8_t, py::array::c_style>& text, const Ints& begin,
                                     const Ints& order, const Ints& first, const Ints& right, const Ints& rank,
                                     const Ints& result, bool whole) {
  const std::string_view characters(reinterpret_cast<const char*>(text.data()), static_cast<std::size_t>(text.size()));
  tsrun::Vocabulary vocabulary({characters, flat(begin, "begin"), flat(order, "order"), flat(first, "first"),
                                flat(right, "right"), flat(rank, "rank"), flat(result, "result"), whole});
  return std::make_unique<HeldVocabulary>(
      HeldVocabulary{{text, begin, order, first, right, rank, result}, std::move(vocabulary)});
}

std::vector<std::int32_t> merge(const HeldVocabulary& self, const std::vector<std::int32_t>& symbols,
                                const std::vector<std::optional<std::int32_t>>& words) {
  const py::gil_scoped_release released;
  return self.vocabulary.merge(symbols, words);
}

std::vector<std::string> words(const HeldVocabulary& self, const std::vector<std::int32_t>& ids) {
  std::vector<std::string> found;
  for (const std::int32_t id : ids) {
    if (const auto word = self.vocabulary.word(id); !word.empty()) found.emplace_back(word);
  }
  return found;
}

tsrun::LogitType logit_type_of(const std::string& name) {
  if (name == "f32") return tsrun::LogitType::f32;
  if (name == "bf16") return tsrun::LogitType::bf16;
  if (name == "f16") return tsrun::LogitType::f16;
  if (name == "f64") return tsrun::LogitType::f64;
  throw std::invalid_argument("logits can not be of type `" + name + "`");
}

// [row, width] of logits, which is not checked to be there.
struct LogitRows {
  std::uintptr_t address;
  tsrun::LogitType type;
  std::int64_t width;

  LogitRows(std::uintptr_t address, const std::string& dtype, std::int64_t width)
      : address(address), type(logit_type_of(dtype)), width(width) {
    if (width < 1 || width > INT32_MAX) throw std::invalid_argument("a row of logits has 1 to 2**31 - 1 of them");
  }

  tsrun::Logits operator[](std::size_t row) const {
    const std::uintptr_t logits = address + row * static_cast<std::size_t>(width) * size_of(type);
    return {reinterpret_cast<const void*>(logits), type, width};
  }
};

using Ids = std::vector<std::pair<std::int32_t, double>>;
using Words = py::array_t<std::uint32_t, py::array::c_style>;

Sampler make_sampler(double temperature, std::int64_t top_k, double top_p, double min_p, std::uint64_t seed,
                     const Ids& logit_bias, double repetition, double frequency, double presence,
                     const std::optional<Ints>& prompt, const std::optional<Words>& allowed, int num_logprobs) {
  Sampler sampler{temperature, top_k, top_p, min_p, seed};
  const tsrun::Penalties penalties{repetition, frequency, presence};
  if (penalties.look_back() || !logit_bias.empty()) {
    std::span<const std::int32_t> tokens;
    if (prompt) tokens = flat(*prompt, "prompt");
    const auto is_negative = [](std::int32_t id) { return id < 0; };
    if (std::ranges::any_of(tokens, is_negative) ||
        std::ranges::any_of(logit_bias, is_negative, &Ids::value_type::first))
      throw std::invalid_argument("a token is at least 0");
    sampler.adjustment.emplace(penalties, logit_bias, tokens);
  }
  if (allowed) sampler.allowed = {allowed->data(), static_cast<std::size_t>(allowed->size())};
  sampler.num_log_probabilities = num_logprobs;
  return sampler;
}

py::tuple log_probabilities_as_python(const tsrun::LogProbabilities& found) {
  py::list top;
  for (const auto& [id, value] : found.top) top.append(py::make_tuple(id, value));
  return py::make_tuple(found.of_token, top);
}

py::list score(std::uintptr_t address, const std::string& dtype, std::int64_t width, const Ints& rows,
               const Ints& tokens, const Ints& counts) {
  const LogitRows logits(address, dtype, width);
  const std::span<const std::int32_t> each = flat(rows, "rows"), of = flat(tokens, "tokens"),
                                      top = flat(counts, "counts");
  if (of.size() != each.size() || top.size() != each.size())
    throw std::invalid_argument("every array must have an element for each row");
  for (std::size_t i = 0; i < each.size(); ++i)
    if (each[i] < 0 || top[i] < 0 || of[i] < 0 || of[i] >= width)
      throw std::invalid_argument("a row, token or count that there is not");
  std::vector<tsrun::LogProbabilities> found;
  {
    const py::gil_scoped_release release;
    static thread_local tsrun::Ranking room;
    for (std::size_t i = 0; i < each.size(); ++i)
      found.push_back(log_probabilities(logits[each[i]], of[i], top[i], room));
  }
  py::list all;
  for (const tsrun::LogProbabilities& one : found) all.append(log_probabilities_as_python(one));
  return all;
}

// The rows of a sequence: of its drafts, from `first_draft` on, and then its own.
struct RowsOfSequence {
  std::size_t own, first_draft;
  std::int32_t num_drafts;

  std::size_t operator[](std::int32_t at) const {
    return at < num_drafts ? first_draft + static_cast<std::size_t>(at) : own;
  }
};

void check_samplers(const std::vector<Sampler*>& samplers, std::span<const std::int32_t> num_drafts,
                    std::int64_t width) {
  for (std::size_t s = 0; s < samplers.size(); ++s) {
    const Sampler* sampler = samplers[s];
    if (sampler == nullptr) continue;
    if (sampler->adjustment && sampler->adjustment->largest_id() >= width)
      throw std::invalid_argument("a sampler has tokens that a row of logits has not");
    const std::int64_t words = std::ssize(sampler->allowed), of_row = tsrun::words_of(width);
    if (words == 0) continue;
    if (words % of_row != 0) throw std::invalid_argument("a sampler allows tokens of another vocabulary");
    if (!num_drafts.empty() && words / of_row <= num_drafts[s])
      throw std::invalid_argument("a sampler does not say what it allows after so many drafts");
  }
}

py::tuple choose(std::uintptr_t address, const std::string& dtype, std::int64_t width,
                 const std::vector<Sampler*>& samplers, const Ints& positions, const std::optional<Ints>& largest,
                 const std::optional<Ints>& keep, const std::optional<Ints>& num_drafts,
                 const std::optional<Ints>& drafts) {
  const LogitRows rows(address, dtype, width);
  const std::size_t num_sequences = samplers.size();
  const std::span<const std::int32_t> places = flat(positions, "positions");
  std::span<const std::int32_t> counts, drafted, first, kept;
  if (num_drafts) counts = flat(*num_drafts, "num_drafts");
  if (drafts) drafted = flat(*drafts, "drafts");
  if (largest) first = flat(*largest, "largest");
  if (keep) kept = flat(*keep, "keep");
  if (places.size() != num_sequences || (num_drafts && counts.size() != num_sequences))
    throw std::invalid_argument("every array of sequences must have an element for each sampler");
  std::size_t all_drafts = 0;
  for (const std::int32_t count : counts) {
    if (count < 0) throw std::invalid_argument("a number of drafts is at least 0");
    all_drafts += static_cast<std::size_t>(count);
  }
  const std::size_t num_rows = num_sequences + all_drafts;
  if (drafted.size() != all_drafts || (largest && first.size() < num_rows) || (keep && kept.size() < num_rows))
    throw std::invalid_argument("every array of rows must have an element for each row");
  check_samplers(samplers, counts, width);
  py::array_t<std::int32_t> tokens(static_cast<py::ssize_t>(num_rows));
  std::int32_t* token = tokens.mutable_data();
  std::vector<std::optional<tsrun::LogProbabilities>> log_probabilities;
  {
    const py::gil_scoped_release release;
    static thread_local tsrun::Ranking room;
    const auto choose_at = [&](Sampler& sampler, std::size_t row, std::uint64_t position, std::int32_t before) {
      if (largest && sampler.takes_first()) {
        const std::int32_t id = first[row];
        const bool may_come = id < 0 || tsrun::allows(sampler.allowed_after(before, width), id);
        if (may_come) return id;
        if (keep && kept[row] > 0) return tsrun::not_kept;
      }
      tsrun::Choice choice = choose(rows[row], sampler, position, room, before);
      if (choice.log_probabilities) {
        log_probabilities.resize(num_rows);
        log_probabilities[row] = std::move(choice.log_probabilities);
      }
      return choice.token;
    };
    std::fill_n(token, num_sequences, 0);
    std::fill_n(token + num_sequences, all_drafts, tsrun::not_reached);
    std::size_t first_draft = 0;
    for (std::size_t s = 0; s < num_sequences; ++s) {
      const std::int32_t count = num_drafts ? counts[s] : 0;
      const RowsOfSequence own{s, num_sequences + first_draft, count};
      const std::int32_t* draft = drafted.data() + first_draft;
      first_draft += static_cast<std::size_t>(count);
      if (samplers[s] == nullptr) continue;
      if (count > 0) token[s] = tsrun::not_reached;
      for (std::int32_t at = 0; at <= count; ++at) {
        const auto position = static_cast<std::uint64_t>(places[s] - count + at);
        token[own[at]] = choose_at(*samplers[s], own[at], position, at);
        if (at < count && token[own[at]] != draft[at]) break;
      }
    }
  }
  py::dict found;
  for (std::size_t row = 0; row < log_probabilities.size(); ++row)
    if (log_probabilities[row]) found[py::int_(row)] = log_probabilities_as_python(*log_probabilities[row]);
  return py::make_tuple(tokens, found);
}

py::tuple draft_of(const tsrun::Lookup& self, std::size_t most) {
  std::vector<Token> tokens;
  std::vector<double> chances;
  self.draft(most, tokens, chances);
  return py::make_tuple(tokens, chances);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() =
      "The scheduler: which tokens of which requests run in the next step. The sampler: which token follows. The "
      "merges of "
      "a vocabulary.";

  py::class_<HeldVocabulary>(module, "Vocabulary")
      .def(py::init(&hold), "text"_a.noconvert(), "begin"_a.noconvert(), "order"_a.noconvert(), "first"_a.noconvert(),
           "right"_a.noconvert(), "rank"_a.noconvert(), "result"_a.noconvert(), "whole"_a)
      .def("merge", &merge, "symbols"_a, "words"_a)
      .def("words", &words, "ids"_a)
      .def(
          "find", [](const HeldVocabulary& self, const std::string& word) { return self.vocabulary.find(word); },
          "word"_a);

  py::class_<Sampler>(module, "Sampler")
      .def(py::init(&make_sampler), py::kw_only(), py::keep_alive<1, 12>(), "temperature"_a = 0.0, "top_k"_a = 0,
           "top_p"_a = 1.0, "min_p"_a = 0.0, "seed"_a = 0, "logit_bias"_a = Ids{}, "repetition_penalty"_a = 1.0,
           "frequency_penalty"_a = 0.0, "presence_penalty"_a = 0.0, "prompt"_a.noconvert() = py::none(),
           "allowed"_a.noconvert() = py::none(), "num_logprobs"_a = -1)
      .def_readonly("seed", &Sampler::seed);
  module.def("choose", &choose, "address"_a, "dtype"_a, "width"_a, "samplers"_a, "positions"_a,
             "largest"_a = py::none(), "keep"_a = py::none(), "num_drafts"_a = py::none(), "drafts"_a = py::none());
  module.def("score", &score, "address"_a, "dtype"_a, "width"_a, "rows"_a, "tokens"_a, "counts"_a);
  module.def("uniform", &tsrun::uniform, "seed"_a, "position"_a);

  py::class_<tsrun::Outputs, std::shared_ptr<tsrun::Outputs>>(module, "Outputs")
      .def(py::init<std::size_t>(), "most"_a)
      .def("append", [](tsrun::Outputs& self, const Ints& tokens) { self.append(flat(tokens, "tokens")); }, "tokens"_a);
  py::class_<tsrun::Lookup>(module, "Lookup")
      .def(py::init([](const Ints& prompt, std::shared_ptr<tsrun::Outputs> outputs) {
             return std::make_unique<tsrun::Lookup>(flat(prompt, "prompt"), std::move(outputs));
           }),
           "prompt"_a.noconvert(), "outputs"_a)
      .def("take", &tsrun::Lookup::take, "token"_a)
      .def("draft", &draft_of, "most"_a);

  py::class_<PlanView>(module, "StepPlan")
      .def_property_readonly("step", [](const PlanView& view) { return number(view.step); })
      .def_property_readonly("requests", &vector_of<&StepPlan::requests, std::int64_t>)
      .def_property_readonly("ids", &vector_of<&StepPlan::ids, std::int32_t>)
      .def_property_readonly("positions", &vector_of<&StepPlan::positions, std::int32_t>)
      .def_property_readonly("slots", &slots_of)
      .def_property_readonly("spans", &rows_of<&StepPlan::spans, 2>)
      .def_property_readonly("lengths", &vector_of<&StepPlan::lengths, std::int32_t>)
      .def_property_readonly("last", &vector_of<&StepPlan::last, std::int32_t>)
      .def_property_readonly("samples", &vector_of<&StepPlan::samples, bool>)
      .def_property_readonly("num_drafts", &vector_of<&StepPlan::num_drafts, std::int32_t>)
      .def_property_readonly("follows", &vector_of<&StepPlan::follows, std::int32_t>)
      .def_property_readonly("table_rows", &vector_of<&StepPlan::table_rows, std::int32_t>)
      .def_property_readonly("table_updates", &copied_rows_of<&StepPlan::table_updates, 4>)
      .def_property_readonly("copies", &copied_rows_of<&StepPlan::copies, 3>);

  py::class_<Scheduler, std::shared_ptr<Scheduler>>(module, "Scheduler")
      .def(py::init(&make), py::kw_only(), "num_pages"_a, "page_size"_a, "max_sequences"_a, "max_step_tokens"_a,
           "max_context"_a, "windows"_a = py::tuple(), "states"_a = py::tuple(), "num_rank_groups"_a = 1,
           "paddings"_a = py::tuple(), "num_host_pages"_a = 0, "depth"_a = 1, "prefix_cache"_a = true,
           "namespace"_a = 0, "events"_a = false, "aging_seconds"_a = 30.0, "floor"_a = 0.0, "scored_rows"_a = 64)
      .def(
          "refusal",
          [](const Scheduler& self, std::int64_t prompt_tokens,
             std::int64_t max_new_tokens) -> std::optional<std::string> {
            std::string why = self.refusal(prompt_tokens, max_new_tokens);
            if (why.empty()) return std::nullopt;
            return why;
          },
          "prompt_tokens"_a, "max_new_tokens"_a)
      .def("submit", &submit, "request"_a, "prompt"_a, "max_new_tokens"_a, py::kw_only(), "user"_a = 0,
           "priority"_a = 0, "deadline"_a = tsrun::never, "salt"_a = 0, "device_drafts"_a = 0, "needs_token"_a = false,
           "scores_prompt"_a = false, "now"_a = 0.0)
      .def(
          "draft",
          [](Scheduler& self, std::int64_t request, const Ints& tokens) {
            self.draft(RequestId{request}, flat(tokens, "tokens"));
          },
          "request"_a, "tokens"_a)
      .def(
          "abort", [](Scheduler& self, std::int64_t request) { self.abort(RequestId{request}); }, "request"_a)
      .def(
          "finish", [](Scheduler& self, std::int64_t request) { self.finish(RequestId{request}); }, "request"_a)
      .def("drain", &Scheduler::drain)
      .def("plan", &plan, "now"_a = 0.0)
      .def("commit", &commit, "step"_a, "tokens"_a, "counts"_a = py::none(), py::kw_only(), "now"_a = 0.0)
      .def(
          "fail", [](Scheduler& self, std::int64_t step) { self.fail(StepId{step}); }, "step"_a)
      .def("ended", &ended)
      .def(
          "cached_tokens",
          [](const Scheduler& self, std::int64_t request) { return self.cached_tokens(RequestId{request}); },
          "request"_a)
      .def("transfers", &transfers)
      .def(
          "transferred",
          [](Scheduler& self, std::int64_t transfer, bool ok) { self.transferred(TransferId{transfer}, ok); },
          "transfer"_a, "ok"_a)
      .def("running", &running)
      .def("page_events", &page_events)
      .def_static("transitions", &transitions)
      .def_property_readonly("num_waiting", &Scheduler::num_waiting)
      .def_property_readonly("num_running", &Scheduler::num_running)
      .def_property_readonly("num_free_pages", &Scheduler::num_free_pages)
      .def_property_readonly("num_cached_pages", &Scheduler::num_cached_pages)
      .def_property_readonly("preemptions", &Scheduler::preemptions);
}
