# How our own code is compiled: language level, warnings, optimisation, compiler cache.
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")  # no -march=native: a cluster's nodes differ
set(CMAKE_COMPILE_WARNING_AS_ERROR ON CACHE BOOL "Warnings in our code are errors")

set(SMALLTALK_SANITIZE "" CACHE STRING "Sanitizers, as in -fsanitize=")

add_library(smalltalk_options INTERFACE)
target_compile_features(smalltalk_options INTERFACE cxx_std_20)
target_compile_options(smalltalk_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wconversion>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>")
# Behind smalltalk_options: where eight files are compiled as one, what is global in one shadows in
# another, and a type of one file is no longer known to be of that one alone.
add_library(smalltalk_unity_options INTERFACE)
target_compile_options(smalltalk_unity_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wno-shadow;-Wno-subobject-linkage>")

# With SMALLTALK_UNITY, eight files of a target, which has smalltalk_options already, are one.
function(smalltalk_compile_eight_as_one target)
  if(SMALLTALK_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:smalltalk_unity_options>)
  endif()
endfunction()

# For a target whose time is spent elsewhere (in kernels, in LibTorch, waiting): compiles in two
# thirds of the time. A file's own COMPILE_OPTIONS come after and win.
function(smalltalk_compile_quickly target)
  target_compile_options(${target} PRIVATE $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>)
endfunction()

if(SMALLTALK_SANITIZE)
  target_compile_options(smalltalk_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${SMALLTALK_SANITIZE}>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>
    # toml++ calls unreachable what is not (ci/fuzz_ignore.txt, for clang).
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fno-sanitize=unreachable>)
  target_link_options(smalltalk_options INTERFACE -fsanitize=${SMALLTALK_SANITIZE})
endif()

# Paths below the source folder are cut from what the compiler sees and writes, so that two
# checkouts share one cache and the binary names no machine.
target_compile_options(smalltalk_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=>")
find_program(SMALLTALK_CCACHE ccache)
if(SMALLTALK_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=time_macros,include_file_mtime,include_file_ctime
      CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${SMALLTALK_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
