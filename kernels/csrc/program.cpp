#include "program.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "shared_memory.hpp"

namespace tsk {

Program::Program(std::shared_ptr<Arena> arena, std::int64_t token_bytes, std::int64_t sequence_bytes)
    : arena_(std::move(arena)), token_bytes_(token_bytes), sequence_bytes_(sequence_bytes) {}

void Program::add(const std::string& kernel, const std::vector<Operand>& operands, const Operand& out,
                  const std::vector<double>& numbers, const std::vector<float>& constants,
                  std::shared_ptr<RankGroup> group) {
  const Kernel* found = find_kernel(kernel.c_str());
  if (!found) throw std::invalid_argument("no kernel `" + kernel + "` for the instruction set in use");
  if (operands.size() > max_operands || numbers.size() > max_numbers)
    throw std::invalid_argument("kernel `" + kernel + "` is given more operands or numbers than a call holds");
  for (const Operand& operand : operands)
    if (operand.sizes.size() > max_dims || operand.sizes.size() != operand.strides.size())
      throw std::invalid_argument("kernel `" + kernel +
                                  "` is given an operand of too many dimensions, or with other strides than sizes");
  Step step{found, operands, out, numbers, constants, std::move(group), Barrier::none, false};
  step.prepared_late = found->prepare && operands.at(found->prepared_from).space != Space::fixed;
  step.barrier_before = barrier_for(step);
  if (step.prepared_late) step.barrier_before = Barrier::always;
  if (step.barrier_before != Barrier::none) accesses_.clear();
  for (const Operand& operand : operands) note(operand, false);
  note(out, true);
  steps_.push_back(std::move(step));
  resolved_for_.clear();
}

// Kernels by rows of the same rows follow each other freely as long as what they touch is laid out alike: a worker then
// meets only what it has written itself. Where memory has changed hands, a row of one value may overlap another row of
// the next.
Barrier Program::barrier_for(const Step& step) {
  const bool by_rows = step.kernel->partition == Partition::rows;
  const Operand& leading = step.out.space == Space::fixed ? step.operands.back() : step.out;
  const Extent rows = leading.sizes.empty() ? Extent{} : leading.sizes.front();
  const bool always = !steps_.empty() && (!by_rows || !by_rows_ || !(rows == rows_));
  const auto clashes = [&](const Operand& operand, bool written) {
    if (operand.space == Space::fixed) return false;
    const auto begin = static_cast<std::int64_t>(operand.address), end = begin + operand.row_bytes;
    return std::any_of(accesses_.begin(), accesses_.end(), [&](const Access& access) {
      if (access.space != operand.space || !(written || access.written) || access.end <= begin || end <= access.begin)
        return false;
      return access.begin != begin || access.row_bytes != operand.row_bytes;
    });
  };
  bool clash = clashes(step.out, true);
  for (const Operand& operand : step.operands) clash = clash || clashes(operand, false);
  by_rows_ = by_rows;
  rows_ = rows;
  return always ? Barrier::always : clash ? Barrier::between_rows : Barrier::none;
}

void Program::note(const Operand& operand, bool written) {
  if (operand.space == Space::fixed) return;
  const auto begin = static_cast<std::int64_t>(operand.address);
  accesses_.push_back({operand.space, begin, begin + operand.row_bytes, operand.row_bytes, written});
}

std::byte* Program::address(const Operand& operand) const {
  switch (operand.space) {
    case Space::tokens:
      return arena_->tokens.data() + static_cast<std::int64_t>(operand.address) * sizes_.T + operand.offset;
    case Space::sequences:
      return arena_->sequences.data() + static_cast<std::int64_t>(operand.address) * sizes_.S + operand.offset;
    case Space::fixed:
      break;
  }
  return reinterpret_cast<std::byte*>(operand.address) + operand.offset;
}

Tensor Program::resolve(const Operand& operand) const {
  Tensor tensor;
  tensor.data = address(operand);
  tensor.dtype = operand.dtype;
  tensor.dims = static_cast<int>(operand.sizes.size());
  for (int d = 0; d < tensor.dims; ++d) {
    tensor.sizes[d] = sizes_.of(operand.sizes[d]);
    tensor.strides[d] = sizes_.of(operand.strides[d]);
  }
  return tensor;
}

void Program::resolve_all(int num_workers) {
  calls_.resize(steps_.size());
  std::int64_t scratch = 0;
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    Call& call = calls_[i];
    call.num_operands = static_cast<int>(step.operands.size());
    for (int o = 0; o < call.num_operands; ++o) call.operands[o] = resolve(step.operands[o]);
    call.out = resolve(step.out);
    std::copy(step.numbers.begin(), step.numbers.end(), call.numbers);
    call.constants = step.constants.data();
    call.num_constants = static_cast<std::int64_t>(step.constants.size());
    call.group = step.group.get();
    if (step.kernel->scratch_bytes) scratch = std::max(scratch, step.kernel->scratch_bytes(call, num_workers));
  }
  arena_->scratch.reserve(scratch);
  for (Call& call : calls_) call.scratch = arena_->scratch.data();
}

void Program::prepare(Team& team, StepSizes sizes) {
  arena_->tokens.reserve(token_bytes_ * sizes.T);
  arena_->sequences.reserve(sequence_bytes_ * sizes.S);
  const auto addresses = [&] {
    return std::vector<std::byte*>{arena_->tokens.data(), arena_->sequences.data(), arena_->scratch.data()};
  };
  if (!(sizes == sizes_) || num_workers_ != team.num_workers() || resolved_for_ != addresses()) {
    sizes_ = sizes;
    num_workers_ = team.num_workers();
    resolve_all(num_workers_);
    resolved_for_ = addresses();
  }
  for (std::size_t i = 0; i < steps_.size(); ++i)
    if (steps_[i].kernel->prepare && !steps_[i].prepared_late) steps_[i].kernel->prepare(calls_[i]);
}

void Program::run(Team& team, StepSizes sizes) {
  prepare(team, sizes);
  team.run(work, this);
  check_groups();
}

std::vector<double> Program::measure(Team& team, StepSizes sizes) {
  prepare(team, sizes);
  seconds_.assign(steps_.size(), 0);
  team.run(measured_work, this);
  check_groups();
  return seconds_;
}

// A step whose ranks have parted runs to its end, on zeros, since the workers of a team wait for each other.
void Program::check_groups() const {
  for (const Step& step : steps_)
    if (step.group && step.group->failed()) throw std::runtime_error(step.group->failure());
}

// What comes before a call: the wait for the other workers, and what it has prepared of what this step has computed.
void Program::enter(std::size_t i, Barrier most_left_out, const Worker& worker) {
  if (steps_[i].barrier_before > most_left_out) worker.barrier();
  if (!steps_[i].prepared_late) return;
  if (worker.index == 0) steps_[i].kernel->prepare(calls_[i]);
  worker.barrier();
}

void Program::work(void* self, const Worker& worker) {
  auto& program = *static_cast<Program*>(self);
  const Barrier most_left_out = program.sizes_.T > 1 ? Barrier::none : Barrier::between_rows;
  for (std::size_t i = 0; i < program.steps_.size(); ++i) {
    program.enter(i, most_left_out, worker);
    program.steps_[i].kernel->run(program.calls_[i], worker);
  }
}

void Program::measured_work(void* self, const Worker& worker) {
  auto& program = *static_cast<Program*>(self);
  const Barrier most_left_out = program.sizes_.T > 1 ? Barrier::none : Barrier::between_rows;
  auto before = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < program.steps_.size(); ++i) {
    program.enter(i, most_left_out, worker);
    program.steps_[i].kernel->run(program.calls_[i], worker);
    if (worker.index != 0) continue;
    const auto now = std::chrono::steady_clock::now();
    program.seconds_[i] = std::chrono::duration<double>(now - before).count();
    before = now;
  }
}

int Program::num_barriers() const {
  return static_cast<int>(
      std::count_if(steps_.begin(), steps_.end(),
                    [](const Step& step) { return step.barrier_before != Barrier::none; }) +
      std::count_if(steps_.begin(), steps_.end(), [](const Step& step) { return step.prepared_late; }));
}

}  // namespace tsk
