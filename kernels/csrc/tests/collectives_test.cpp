#include "collectives.hpp"

#include <unistd.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "arrays.hpp"
#include "check.hpp"
#include "program.hpp"
#include "shared_memory.hpp"

namespace tsk {
namespace {

// Ranks as threads, each with a segment of its own of one name.
template <class Function>
void on_ranks(int count, const Function& f) {
  const std::string name = "/tsrun-test-" + std::to_string(getpid());
  std::vector<std::shared_ptr<Segment>> segments{Segment::create(name, count, 1)};
  for (int rank = 1; rank < count; ++rank) segments.push_back(Segment::open(name, count, 1, rank));
  Segment::unlink(name);
  std::vector<int> members;
  for (int rank = 0; rank < count; ++rank) members.push_back(rank);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank)
    threads.emplace_back(
        [&, rank] { f(std::make_shared<RankGroup>(segments[rank], 0, members, rank, 100, 30.0), *segments[rank]); });
  for (std::thread& thread : threads) thread.join();
}

Operand vector_of(std::vector<float>& numbers) {
  Operand operand;
  operand.address = reinterpret_cast<std::uint64_t>(numbers.data());
  operand.sizes = {{static_cast<std::int64_t>(numbers.size()), 0}};
  operand.strides = {{1, 0}};
  return operand;
}

}  // namespace

TEST("ranks add up what is smaller than a slot and what is larger, call after call, with any number of workers") {
  tests::on_each_isa([] {
    for (int count = 1; count <= 4; ++count)
      for (const int size : {1, 100, 70000, 200000})  // a slot holds 65536
        on_ranks(count, [&](const std::shared_ptr<RankGroup>& group, Segment&) {
          std::vector<float> x(size, static_cast<float>(group->rank() + 1));
          Program program(std::make_shared<Arena>(), 0, 0);
          for (int call = 0; call < 3; ++call) program.add("all_reduce", {vector_of(x)}, vector_of(x), {0}, {}, group);
          Team team(1 + group->rank() % 3, {});
          program.run(team, {});
          const auto sum = static_cast<float>(count * (count + 1) / 2 * count * count);
          for (const float number : x) CHECK(number == sum);
        });
  });
}

TEST("a step whose ranks part runs to its end, and then says who has ended") {
  tests::on_each_isa([] {
    on_ranks(3, [&](const std::shared_ptr<RankGroup>& group, Segment& segment) {
      if (group->rank() == 2) return segment.leave();
      std::vector<float> x(100, 1.0f), all(300, 1.0f);
      Program program(std::make_shared<Arena>(), 0, 0);
      program.add("all_gather", {vector_of(x)}, vector_of(all), {0}, {}, group);
      program.add("all_reduce", {vector_of(x)}, vector_of(x), {0}, {}, group);
      Team team(2, {});
      std::string told;
      try {
        program.run(team, {});
      } catch (const std::runtime_error& error) {
        told = error.what();
      }
      CHECK(told == "rank 2 has ended");
      for (const float number : all) CHECK(number == 0);
    });
  });
}

}  // namespace tsk
