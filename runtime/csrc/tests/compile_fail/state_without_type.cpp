// A state of the table is a type.
// expect: every state of the table is a type
// patch transition_check.cpp: all_agree<Waiting, Loading, Prefilling, => all_agree<Waiting, Prefilling,
#include "transition_check.cpp"
