// The tests of the native code without Node: core/ and the CPU backend against plain float64.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
