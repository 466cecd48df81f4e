// Who looks at the states has a case for each of them.
// expect: this visitor has no case for a state
#include "entry.hpp"

using namespace tsrun;

void legal(Entry& entry) {
  std::visit(OnState{[](Waiting&) {}, [](Loading&) {}, [](Prefilling&) {}, [](Decoding&) {}, [](Preempted&) {},
                     [](Finishing&) {}},
             entry.state);
}

#ifdef ILLEGAL
void illegal(Entry& entry) {
  std::visit(OnState{[](Waiting&) {}, [](Loading&) {}, [](Prefilling&) {}, [](Decoding&) {}, [](Preempted&) {}},
             entry.state);
}
#endif
