// A set of many 64-bit fingerprints in little memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tsrun::model {

class Fingerprints {
 public:
  bool contains(std::uint64_t fingerprint) const { return places_[find(places_, key(fingerprint))] != 0; }

  bool insert(std::uint64_t fingerprint) {  // false when it is there
    std::uint64_t& place = places_[find(places_, key(fingerprint))];
    if (place != 0) return false;
    place = key(fingerprint);
    if (++size_ * 2 > places_.size()) grow();
    return true;
  }

 private:
  static std::uint64_t key(std::uint64_t fingerprint) { return fingerprint == 0 ? 1 : fingerprint; }
  static std::size_t find(const std::vector<std::uint64_t>& places, std::uint64_t wanted) {
    std::size_t at = wanted & (places.size() - 1);
    while (places[at] != 0 && places[at] != wanted) at = (at + 1) & (places.size() - 1);
    return at;
  }
  void grow() {
    std::vector<std::uint64_t> larger(places_.size() * 2);
    for (const std::uint64_t each : places_) {
      if (each != 0) larger[find(larger, each)] = each;
    }
    places_.swap(larger);
  }

  std::vector<std::uint64_t> places_ = std::vector<std::uint64_t>(1024);
  std::size_t size_ = 0;
};

}  // namespace tsrun::model
