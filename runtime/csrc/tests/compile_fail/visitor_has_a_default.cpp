// No default stands for states that come later.
// expect: this visitor has no case for a state
#include "entry.hpp"

using namespace tsrun;

void legal(Entry& entry) {
  std::visit(OnState{[](Waiting&) {}, [](Loading&) {}, [](Prefilling&) {}, [](Decoding&) {}, [](Preempted&) {},
                     [](Finishing&) {}},
             entry.state);
}

#ifdef ILLEGAL
bool illegal(Entry& entry) {
  return std::visit(OnState{[](Waiting&) { return true; }, [](auto&) { return false; }}, entry.state);
}
#endif
