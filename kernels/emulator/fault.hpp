// What is wrong with a kernel, at which line of its PTX, and how to mend it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace ptx {

struct Fault : std::runtime_error {
  Fault(std::string kind, std::uint32_t line, const std::string& what, const std::string& help)
      : std::runtime_error(what + "; " + help), kind(std::move(kind)), line(line) {}

  std::string kind;
  std::uint32_t line;  // 0 where it belongs to none
};

}  // namespace ptx
