#include "request.hpp"

#include <optional>
#include <utility>

#include "check.hpp"

namespace tsrun {

static Prefilling prefilling(PagePool& pool, std::int32_t num_pages) {
  PageTable pages(4, GroupId{0});
  for (std::int32_t page = 0; page < num_pages; ++page) pages.add(std::move(*pool.take()));
  return admit(Waiting{Request(RequestId{7}, {10, 11, 12}, 2)}, std::move(pages));
}

TEST("an admitted request has cached nothing") {
  PagePool pool(2);
  CHECK(prefilling(pool, 1).num_cached == 0);
}

TEST("a preempted request keeps its tokens and returns its pages") {
  PagePool pool(2);
  Decoding decoding = start_decoding(prefilling(pool, 2), 20);
  CHECK(pool.num_free() == 0);
  const Waiting waiting = preempt(std::move(decoding));
  CHECK(pool.num_free() == 2);
  CHECK(waiting.request.length() == 4);
  CHECK(waiting.request.token(3) == 20);
}

TEST("a request is complete after its last new token") {
  PagePool pool(1);
  Decoding decoding = start_decoding(prefilling(pool, 1), 20);
  CHECK(!decoding.request.is_complete());
  decoding = decode(std::move(decoding), 21);
  CHECK(decoding.request.is_complete());
}

TEST("every last edge returns the pages at once") {
  PagePool pool(1);
  CHECK(drop(prefilling(pool, 1)) == RequestId{7});
  CHECK(pool.num_free() == 1);
  Decoding decoding = start_decoding(prefilling(pool, 1), 20);
  CHECK(finish(std::move(decoding)) == RequestId{7});
  CHECK(pool.num_free() == 1);
}

TEST("a draining request keeps its pages until it is released") {
  PagePool pool(1);
  Draining draining = drain(prefilling(pool, 1));
  CHECK(pool.num_free() == 0);
  CHECK(release(std::move(draining)) == RequestId{7});
  CHECK(pool.num_free() == 1);
}

}  // namespace tsrun
