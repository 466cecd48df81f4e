// A new state has a name.
// expect: every state has a name, and `ended` is the last
// patch transitions.hpp: finishing, ended }; => paused, finishing, ended };
#include "transitions.hpp"
