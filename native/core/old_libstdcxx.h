// std::condition_variable::wait got a new symbol version with GCC 12 (GLIBCXX_3.4.30). The older one, which does the
// same, lets a published addon run with the C++ library of GCC 11 (RHEL 9, Amazon Linux 2023); nothing else in it asks
// for a newer one.
#pragma once
#include <condition_variable>

#if defined(__GLIBCXX__) && defined(__x86_64__) && _GLIBCXX_RELEASE >= 12
__asm__(
    ".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE,"
    "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");
#endif
