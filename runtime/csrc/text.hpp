// Messages out of parts.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "ids.hpp"

namespace tsrun {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
[[noreturn]] void reject(RequestId id, const Parts&... why) {
  throw std::invalid_argument(text("request ", number(id), ": ", why...));
}

template <typename... Parts>
[[noreturn]] void out_of_order(const Parts&... what) {
  throw std::logic_error(text(what...));
}

}  // namespace tsrun
