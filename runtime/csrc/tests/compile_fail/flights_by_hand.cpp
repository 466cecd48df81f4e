// Flights that no request has prove nothing.
// expect gcc: 'constexpr tsrun::Flights::Flights()' is private within this context
// expect clang: calling a private constructor of class 'tsrun::Flights'
#include "request.hpp"

using namespace tsrun;

std::optional<Landed> legal(const Seat& seat) { return seat.flights.landed(); }

#ifdef ILLEGAL
std::optional<Landed> illegal() { return Flights().landed(); }
#endif
