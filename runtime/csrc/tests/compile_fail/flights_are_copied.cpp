// A copy of flights would land without the request.
// expect gcc: use of deleted function 'constexpr tsrun::Flights::Flights(const tsrun::Flights&)'
// expect clang: call to implicitly-deleted copy constructor of 'tsrun::Flights'
#include "request.hpp"

using namespace tsrun;

void legal(Seat& seat) { seat.flights.crash(); }

#ifdef ILLEGAL
void illegal(const Seat& seat) {
  Flights copy = seat.flights;
  copy.crash();
}
#endif
