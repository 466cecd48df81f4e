#include "scheduler.hpp"

#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace tsrun {

using Ints = std::vector<std::int32_t>;

static Limits limits(std::int32_t num_pages, std::int32_t page_size, std::int32_t max_sequences,
                     std::int32_t max_step_tokens, std::int32_t max_context, std::int32_t num_rank_groups = 1) {
  return {{page_size, {{CacheKind::full, num_pages}}}, max_sequences, max_step_tokens, max_context, num_rank_groups};
}

static const Limits roomy = limits(16, 4, 4, 8, 32);

static void submit(Scheduler& scheduler, std::int64_t id, std::int32_t length, std::int32_t max_new_tokens) {
  // Unlike any other request's, so that nothing of it is found in the prefix cache.
  scheduler.submit(RequestId{id}, Ints(static_cast<std::size_t>(length), static_cast<Token>(id)), max_new_tokens);
}

static void commit(Scheduler& scheduler, const StepPlan& plan) {
  scheduler.commit(plan.step, Ints(plan.requests.size(), 9));
}

TEST("an idle scheduler plans nothing") {
  Scheduler scheduler(roomy);
  CHECK(scheduler.plan() == nullptr);
}

TEST("a long prompt is fed in chunks of the step's size") {
  Scheduler scheduler(roomy);
  submit(scheduler, 1, 10, 1);
  const StepPlan* plan = scheduler.plan();
  CHECK((plan->spans == Ints{0, 8} && plan->lengths == Ints{8} && plan->samples[0] == 0));
  CHECK((plan->table_updates == Ints{0, 0, 0, 0, 0, 0, 1, 1}));
  commit(scheduler, *plan);
  plan = scheduler.plan();
  CHECK((plan->positions == Ints{8, 9} && plan->lengths == Ints{10} && plan->samples[0] == 1));
  commit(scheduler, *plan);
  CHECK(scheduler.num_running() == 0 && scheduler.num_free_pages() == 16);
}

TEST("decodes come before prefill, and share its step") {
  Scheduler scheduler(roomy);
  submit(scheduler, 1, 3, 4);
  commit(scheduler, *scheduler.plan());
  submit(scheduler, 2, 12, 1);
  const StepPlan* plan = scheduler.plan();
  CHECK((plan->requests == std::vector<std::int64_t>{1, 2}));
  CHECK((plan->spans == Ints{0, 1, 1, 8} && plan->lengths == Ints{4, 7} && plan->last == Ints{0, 7}));
  CHECK((plan->samples == std::vector<std::uint8_t>{1, 0}));
  CHECK(plan->ids[0] == 9);
}

TEST("groups have pages and a block of the rows of their own") {
  Scheduler scheduler(limits(4, 4, 4, 8, 16, 2), {}, {{1, 4}});
  submit(scheduler, 1, 3, 4);
  submit(scheduler, 2, 2, 4);
  submit(scheduler, 3, 1, 4);
  const StepPlan* plan = scheduler.plan();
  // Request 2 goes where most pages are free, and 3 beside 1: of equals the first.
  CHECK((plan->requests == std::vector<std::int64_t>{1, 3, 2}));
  CHECK((plan->spans == Ints{0, 3, 3, 4, 4, 6} && plan->last == Ints{2, 3, 5}));
  CHECK((plan->slots == Ints{0, 1, 2, 4, 0, 1, 16, 16} && plan->positions == Ints{0, 1, 2, 0, 0, 1, 0, 0}));
  CHECK((plan->table_updates == Ints{0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 1}));  // 1, 2 and 3 as they were admitted
  CHECK(scheduler.num_free_pages() == 5);
  commit(scheduler, *plan);
  plan = scheduler.plan();
  CHECK((plan->spans == Ints{0, 1, 1, 2, 2, 3} && plan->ids == Ints{9, 9, 9, 0} && plan->lengths == Ints{4, 2, 3}));
}

TEST("a full group preempts its own youngest, and the other goes on") {
  Scheduler scheduler(limits(2, 2, 4, 8, 4, 2), {}, {{1, 2}});
  for (const std::int64_t id : {1, 2, 3, 4}) submit(scheduler, id, 2, 2);
  const StepPlan* plan = scheduler.plan();
  CHECK((plan->requests == std::vector<std::int64_t>{1, 3, 2, 4} && scheduler.num_free_pages() == 0));
  commit(scheduler, *plan);
  plan = scheduler.plan();  // each group's elder needs a page, and takes it from the younger
  CHECK((plan->requests == std::vector<std::int64_t>{1, 2} && scheduler.preemptions() == 2));
  commit(scheduler, *plan);  // both have made all their tokens
  plan = scheduler.plan();
  CHECK((plan->requests.size() == 2 && scheduler.num_free_pages() == 0));
}

TEST("a group without rows left waits for the next step") {
  Scheduler scheduler(limits(8, 4, 4, 4, 16, 2), {}, {{1, 2}});
  for (const std::int64_t id : {1, 2, 3}) submit(scheduler, id, 3, 2);
  const StepPlan* plan = scheduler.plan();
  CHECK((plan->requests == std::vector<std::int64_t>{1, 2} && plan->samples == std::vector<std::uint8_t>{0, 0}));
  commit(scheduler, *plan);
  plan = scheduler.plan();  // 1 and 2 end their prompts, a row is left in each block: 3 starts in one
  CHECK((plan->requests == std::vector<std::int64_t>{1, 3, 2} && plan->samples == std::vector<std::uint8_t>{1, 0, 1}));
  scheduler.abort(RequestId{1});
  commit(scheduler, *plan);
  plan = scheduler.plan();
  CHECK((plan->requests == std::vector<std::int64_t>{3, 2} && plan->lengths == Ints{3, 4}));
}

TEST("steps are padded by their size") {
  Scheduler scheduler(roomy, {}, {{1, 1}, {5, 4}});
  submit(scheduler, 1, 4, 2);
  const StepPlan* plan = scheduler.plan();
  CHECK((plan->ids.size() == 4));  // 4 is a multiple of 4, and less than 5
  commit(scheduler, *plan);
  submit(scheduler, 2, 4, 2);
  plan = scheduler.plan();  // one decodes, four are prefilled
  CHECK((plan->ids.size() == 8 && plan->spans == Ints{0, 1, 1, 5}));
  CHECK((plan->slots == Ints{4, 8, 9, 10, 11, 64, 64, 64}));
  commit(scheduler, *plan);
  CHECK((scheduler.plan()->ids.size() == 1));
}

TEST("the plan's arrays never move") {
  Scheduler scheduler(roomy);
  submit(scheduler, 1, 20, 12);
  submit(scheduler, 2, 20, 12);
  std::vector<std::vector<const std::int32_t*>> seen;
  while (const StepPlan* plan = scheduler.plan()) {
    seen.push_back({plan->ids.data(), plan->spans.data(), plan->slots.data()});
    CHECK(seen.size() < 3 || seen.back() == seen[seen.size() - 3]);  // two steps take turns
    commit(scheduler, *plan);
  }
}

TEST("no more sequences run than there are slots") {
  Scheduler scheduler(limits(16, 4, 2, 8, 32));
  for (std::int64_t id = 0; id < 3; ++id) submit(scheduler, id, 1, 1);
  CHECK(scheduler.plan()->requests.size() == 2);
  CHECK(scheduler.num_running() == 2 && scheduler.num_waiting() == 1);
}

TEST("the youngest gives way, and its tokens are prefilled again") {
  Scheduler scheduler(limits(2, 2, 2, 8, 4));
  submit(scheduler, 1, 2, 2);
  submit(scheduler, 2, 2, 2);
  commit(scheduler, *scheduler.plan());
  const StepPlan* plan = scheduler.plan();
  CHECK((plan->requests == std::vector<std::int64_t>{1}));
  CHECK(scheduler.preemptions() == 1 && scheduler.num_waiting() == 1);
  commit(scheduler, *plan);
  plan = scheduler.plan();
  CHECK((plan->requests == std::vector<std::int64_t>{2}));
  CHECK((plan->ids == Ints{2, 2, 9} && plan->positions == Ints{0, 1, 2} && plan->samples[0] == 1));
  commit(scheduler, *plan);
  CHECK(scheduler.plan() == nullptr && scheduler.num_free_pages() == 2);
}

TEST("a request starts when all its tokens fit") {
  Scheduler scheduler(limits(3, 4, 2, 8, 12));
  submit(scheduler, 1, 5, 2);
  submit(scheduler, 2, 5, 2);
  const StepPlan* plan = scheduler.plan();
  CHECK(plan->requests.size() == 1 && scheduler.num_free_pages() == 1);
}

TEST("an abort during a step keeps the pages until its commit") {
  Scheduler scheduler(roomy);
  submit(scheduler, 1, 4, 4);
  submit(scheduler, 2, 4, 4);
  const StepPlan* plan = scheduler.plan();
  scheduler.abort(RequestId{1});
  scheduler.abort(RequestId{1});
  CHECK(scheduler.num_running() == 1 && scheduler.num_free_pages() == 14);
  CHECK_THROWS(std::invalid_argument, submit(scheduler, 1, 4, 4));
  scheduler.commit(plan->step, Ints{50, 60});
  CHECK(scheduler.num_free_pages() == 15);
  CHECK(scheduler.plan()->ids == Ints{60});
}

TEST("an aborted id is free for one new request") {
  Scheduler scheduler(roomy);
  submit(scheduler, 1, 4, 4);
  const StepPlan* plan = scheduler.plan();
  scheduler.abort(RequestId{1});
  commit(scheduler, *plan);
  submit(scheduler, 1, 4, 4);
  commit(scheduler, *scheduler.plan());
  CHECK_THROWS(std::invalid_argument, submit(scheduler, 1, 4, 4));
}

TEST("an abort between steps returns the pages at once") {
  Scheduler scheduler(roomy);
  submit(scheduler, 1, 4, 4);
  commit(scheduler, *scheduler.plan());
  submit(scheduler, 2, 4, 4);
  scheduler.abort(RequestId{1});
  scheduler.abort(RequestId{2});
  CHECK(scheduler.num_free_pages() == 16 && scheduler.num_waiting() == 0);
  CHECK(scheduler.plan() == nullptr);
}

TEST("calls out of order are errors") {
  Scheduler scheduler(roomy);
  CHECK_THROWS(std::logic_error, scheduler.commit(StepId{0}, Ints{}));
  submit(scheduler, 1, 4, 4);
  CHECK_THROWS(std::logic_error, scheduler.finish(RequestId{1}));
  const StepPlan* plan = scheduler.plan();
  CHECK_THROWS(std::logic_error, scheduler.plan());
  CHECK_THROWS(std::logic_error, scheduler.finish(RequestId{1}));  // made no token yet
  CHECK_THROWS(std::logic_error, scheduler.commit(StepId{1}, Ints{9}));
  CHECK_THROWS(std::logic_error, scheduler.commit(plan->step, Ints{}));
  scheduler.commit(plan->step, Ints{9});
  CHECK_THROWS(std::logic_error, scheduler.outstanding(StepId{0}));
  scheduler.finish(RequestId{1});
  scheduler.finish(RequestId{1});
  CHECK(scheduler.num_free_pages() == 16);
}

TEST("limits below one, or with slots beyond 32 bits, are refused") {
  Limits none = roomy;
  none.max_sequences = 0;
  CHECK_THROWS(std::invalid_argument, Scheduler(none));
  Limits large = roomy;
  large.caches = {8, {{CacheKind::full, 1 << 28}}};
  CHECK_THROWS(std::invalid_argument, Scheduler(large));
}

}  // namespace tsrun
