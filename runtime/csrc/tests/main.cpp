// Runs every registered test and names those that fail.
#include <exception>
#include <iostream>

#include "check.hpp"

int main() {
  int num_failed = 0;
  for (const auto& test : tsrun::tests::registered()) {
    try {
      test.run();
    } catch (const std::exception& error) {
      ++num_failed;
      std::cerr << "FAILED " << test.fact << "\n  " << error.what() << "\n";
    }
  }
  std::cout << tsrun::tests::registered().size() << " tests, " << num_failed << " failed\n";
  return num_failed == 0 ? 0 : 1;
}
