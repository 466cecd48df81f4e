// A new state says what each event does in it.
// expect: every state says of every event, once, what it does or why it never comes
// patch transitions.hpp: finishing, ended }; => paused, finishing, ended };
// patch transitions.hpp: "finishing", "ended"} => "paused", "finishing", "ended"}
#include "transitions.hpp"
