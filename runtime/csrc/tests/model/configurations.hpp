// The small worlds that are searched in full.
#pragma once

#include <vector>

#include "model/world.hpp"

namespace tsrun::model {

// everyday: fewer disturbances, for a search of seconds.
std::vector<Configuration> configurations(bool everyday);

}  // namespace tsrun::model
