// Nobody but a request's flights proves that they have landed.
// expect gcc: 'constexpr tsrun::Landed::Landed()' is private within this context
// expect clang: calling a private constructor of class 'tsrun::Landed'
#include "request.hpp"

using namespace tsrun;

std::optional<Landed> legal(const Seat& seat) { return seat.flights.landed(); }

#ifdef ILLEGAL
Landed illegal() { return Landed{}; }
#endif
