// A request is admitted once.
// expect: a running request has its slot and pages already
#include "request.hpp"

using namespace tsrun;

Prefilling legal(Waiting state, SeatOwner seat) { return admit(std::move(state), std::move(seat)); }

#ifdef ILLEGAL
void illegal(Waiting state, SeatOwner seat, SeatOwner second) {
  admit(admit(std::move(state), std::move(seat)), std::move(second));
}
#endif
