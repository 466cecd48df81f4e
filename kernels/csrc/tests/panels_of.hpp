// Weights in the layouts of tskernels/layouts.py.
#pragma once

#include "arrays.hpp"

namespace tsk::tests {

constexpr std::int64_t panel = 32;

inline std::int64_t up(std::int64_t size, std::int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// tskernels/layouts.py: `panels`, of the rows that `row_of` names by their place; -1 is a row of zeros.
template <class RowOf>
Array packed(const Array& w, std::int64_t places, const RowOf& row_of) {
  const std::int64_t K = w.tensor().width();
  const bool pairs = w.tensor().dtype == DType::bf16;
  const std::int64_t stored = pairs ? up(K, 2) : K;
  Array panels(w.tensor().dtype, {places / panel, stored * panel});
  for (std::int64_t i = 0; i < panels.size(); ++i) panels.set(i, 0);
  for (std::int64_t place = 0; place < places; ++place)
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int64_t lane = place % panel, row = row_of(place);
      const std::int64_t within = pairs ? (k / 2 * panel + lane) * 2 + k % 2 : k * panel + lane;
      if (row >= 0) panels.set(place / panel * stored * panel + within, static_cast<float>(w.at(row * K + k)));
    }
  return panels;
}

inline Array in_panels(const Array& w) {
  const std::int64_t rows = w.tensor().rows();
  return packed(w, up(rows, panel), [&](std::int64_t place) { return place < rows ? place : -1; });
}

inline Array in_gated_panels(const Array& w) {
  const std::int64_t gates = w.tensor().rows() / 2, half = panel / 2;
  return packed(w, 2 * up(gates, half), [&](std::int64_t place) {
    const std::int64_t gate = place / panel * half + place % half;
    return gate >= gates ? -1 : place % panel < half ? gate : gates + gate;
  });
}

// Of stacked weights w [N * outputs, K] each in panels of its own: [N, panels, K / pairs, 32 * pairs].
inline Array in_stacked_panels(const Array& w, std::int64_t N) {
  const std::int64_t outputs = w.tensor().rows() / N, places = up(outputs, panel);
  const Array flat = packed(w, N * places, [&](std::int64_t place) {
    return place % places < outputs ? place / places * outputs + place % places : -1;
  });
  const std::int64_t lane_elements = w.tensor().dtype == DType::bf16 ? 2 * panel : panel;
  Array stacked(w.tensor().dtype, {N, places / panel, flat.tensor().width() / lane_elements, lane_elements});
  for (std::int64_t i = 0; i < flat.size(); ++i) stacked.set(i, static_cast<float>(flat.at(i)));
  return stacked;
}

}  // namespace tsk::tests
