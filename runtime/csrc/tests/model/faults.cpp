#include "model/faults.hpp"

#include <cstdio>

#include "model/configurations.hpp"
#include "model/explore.hpp"

namespace tsrun::model {

namespace {

struct Planted {
  Fault fault;
  const char* name;
  const char* configuration;  // that has what it needs
};

constexpr Planted all_planted[] = {
    {Fault::forget_update, "a table update is forgotten", "full attention"},
    {Fault::forget_copy, "a state is not copied", "state"},
    {Fault::forget_repeat, "the tables are not said again after a failure", "full attention"},
    {Fault::keep_positions, "a step does not move back after rejected drafts", "device drafts"},
    {Fault::lose_load, "a load moves nothing", "loads beside steps"},
    {Fault::lose_store, "a store moves nothing", "host tier"},
    {Fault::spoil_cached, "a lost step writes to what is cached", "full attention"},
    {Fault::overcount, "a draft that was rejected is committed", "device drafts"},
    {Fault::lose_page, "a free page is lost", "full attention"},
    {Fault::free_held_page, "a page is given away under a step", "window"},
};

}  // namespace

bool finds_all_faults() {
  bool finds_all = true;
  for (const Planted& planted : all_planted) {
    for (const Configuration& configuration : configurations(true)) {
      if (configuration.name != planted.configuration) continue;
      const Searched searched = explore(configuration, planted.fault, 300'000, false);
      finds_all = finds_all && searched.found.has_value();
      std::printf("%s: %s after %lld states\n", planted.name,
                  searched.found ? searched.found->what.c_str() : "NOT FOUND", static_cast<long long>(searched.states));
    }
  }
  return finds_all;
}

}  // namespace tsrun::model
