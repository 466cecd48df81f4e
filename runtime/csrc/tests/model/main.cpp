// Searches small worlds; proves that it would find faults; runs large ones for long. See `usage`.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "model/configurations.hpp"
#include "model/explore.hpp"
#include "model/faults.hpp"
#include "model/soak.hpp"

namespace tsrun::model {

namespace {

void print(const Found& found) {
  std::printf("  %s\n", found.what.c_str());
  for (const Event& event : found.path) std::printf("    %s\n", name_of(event).c_str());
}

bool search_all(bool is_full, const std::string& only, std::int64_t most_states) {
  bool holds = true;
  Searched total;
  for (const Configuration& configuration : configurations(!is_full)) {
    if (!only.empty() && configuration.name != only) continue;
    const Searched searched = explore(configuration, Fault::none, most_states, is_full);
    std::printf("%s: %lld states, %lld transitions, depth %zu, %.1f s%s\n", configuration.name.c_str(),
                static_cast<long long>(searched.states), static_cast<long long>(searched.transitions), searched.depth,
                searched.seconds, searched.found ? ": BROKEN" : (searched.is_complete ? "" : ", not all"));
    std::fflush(stdout);
    if (searched.found) print(shortened(configuration, Fault::none, *searched.found));
    holds = holds && !searched.found;
    total.states += searched.states;
    total.transitions += searched.transitions;
    total.seconds += searched.seconds;
  }
  std::printf("in all %lld states, %lld transitions, %.0f s\n", static_cast<long long>(total.states),
              static_cast<long long>(total.transitions), total.seconds);
  return holds;
}

}  // namespace

}  // namespace tsrun::model

int main(int argc, char** argv) {
  using namespace tsrun::model;
  bool is_full = false;
  std::string only;
  std::int64_t most_states = 0;
  for (int at = 1; at < argc; ++at) {
    const std::string option = argv[at];
    const bool has_value = at + 1 < argc;
    if (option == "--faults") return finds_all_faults() ? 0 : 1;
    if (option == "--allocations") return decodes_without_allocation() ? 0 : 1;
    if (option == "--soak" && has_value) return soak(std::atoll(argv[at + 1])) ? 0 : 1;
    if (option == "--full") {
      is_full = true;
    } else if (option == "--only" && has_value) {
      only = argv[++at];
    } else if (option == "--most" && has_value) {
      most_states = std::atoll(argv[++at]);
    } else {
      std::fprintf(
          stderr,
          "usage: scheduler_model [--full] [--only NAME] [--most STATES] | --faults | --allocations | --soak STEPS\n");
      return 2;
    }
  }
  if (most_states == 0) most_states = is_full ? 4'000'000 : 150'000;
  return search_all(is_full, only, most_states) ? 0 : 1;
}
