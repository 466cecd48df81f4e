// A test framework in a page: TEST("fact") { CHECK(condition); CHECK_THROWS(type, expression); }
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace tsrun::tests {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* fact;
  std::function<void()> run;
};

// A function, not a global: tests of other files register before this file's globals exist.
inline std::vector<Test>& registered() {
  static std::vector<Test> tests;
  return tests;
}

struct Register {
  Register(const char* fact, std::function<void()> run) { registered().push_back({fact, std::move(run)}); }
};

[[noreturn]] inline void fail(const char* file, int line, const char* what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

}  // namespace tsrun::tests

#define TSC_JOIN_(a, b) a##b
#define TSC_JOIN(a, b) TSC_JOIN_(a, b)

#define TEST(fact)                                                                                      \
  static void TSC_JOIN(test_, __LINE__)();                                                              \
  static const ::tsrun::tests::Register TSC_JOIN(register_, __LINE__)(fact, TSC_JOIN(test_, __LINE__)); \
  static void TSC_JOIN(test_, __LINE__)()

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) ::tsrun::tests::fail(__FILE__, __LINE__, #condition); \
  } while (false)

// Failure is a runtime_error, so it is not caught where a logic_error is expected.
#define CHECK_THROWS(Error, expression)                                        \
  do {                                                                         \
    static_assert(!std::is_base_of_v<Error, ::tsrun::tests::Failure>);         \
    try {                                                                      \
      static_cast<void>(expression);                                           \
      ::tsrun::tests::fail(__FILE__, __LINE__, #expression " throws nothing"); \
    } catch (const Error&) {                                                   \
    }                                                                          \
  } while (false)
