// Proof that the search finds what is broken: each fault is planted, and must be found.
#pragma once

namespace tsrun::model {

bool finds_all_faults();

}  // namespace tsrun::model
