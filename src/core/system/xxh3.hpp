// xxHash, header only: nothing to link, no symbols that could meet another copy of it.
#pragma once

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#include <xxhash.h>
