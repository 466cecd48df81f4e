// Marks for clang's -Wconsumed, which refuses the use of a value that was moved from. Other compilers read nothing
// here. A parameter that refers to a lease is whole for clang only where it is marked TSRUN_OWNED.
#pragma once

#if defined(__clang__)
#define TSRUN_CONSUMABLE [[clang::consumable(unconsumed)]]
#define TSRUN_NOT_MOVED [[clang::callable_when("unconsumed")]]
#define TSRUN_RETURNS_OWNED [[clang::return_typestate(unconsumed)]]
#define TSRUN_OWNED [[clang::param_typestate(unconsumed)]]
#else
#define TSRUN_CONSUMABLE
#define TSRUN_NOT_MOVED
#define TSRUN_RETURNS_OWNED
#define TSRUN_OWNED
#endif
