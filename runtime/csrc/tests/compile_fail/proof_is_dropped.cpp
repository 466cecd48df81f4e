// Who asks whether a request has landed acts on the answer.
// expect: who asks for the proof acts on it
#include "request.hpp"

using namespace tsrun;

bool legal(const Seat& seat) { return seat.flights.landed().has_value(); }

#ifdef ILLEGAL
void illegal(const Seat& seat) { seat.flights.landed(); }
#endif
