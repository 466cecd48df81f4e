// Memory that can be put back as it was: a scheduler can not be copied, but all that it is made of lies in one block,
// and a copy of the block put back at the same place is the scheduler as it was.
//
// While an arena is in use every `new` of the program takes from it. Whatever the searcher itself keeps is allocated
// while it is not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tsrun::model {

using Snapshot = std::vector<std::byte>;

struct Arena {
  static void reset();  // everything in it is gone, without destructors
  static void save(Snapshot& snapshot);
  static void restore(const Snapshot& snapshot);

  // Since the program began, of `new` in and outside of the arena.
  static std::int64_t num_allocations();

  class Use {
   public:
    Use();
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
  };
  static void leave();  // where a Use was jumped out of
};

}  // namespace tsrun::model
