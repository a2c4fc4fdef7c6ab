# Kernels: functions that are compiled once for each of several instruction sets, of which one copy
# is chosen at run time (smalltalk/core/system/instruction_set.hpp).
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(SMALLTALK_PROCESSOR x86_64)
  set(SMALLTALK_INSTRUCTION_SETS avx512 avx2 sse2)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(SMALLTALK_PROCESSOR aarch64)
  set(SMALLTALK_INSTRUCTION_SETS neon)
else()
  message(FATAL_ERROR "no kernels for the processor '${CMAKE_SYSTEM_PROCESSOR}'")
endif()
set(SMALLTALK_FLAGS_avx512 -mavx512f -mprefer-vector-width=512)
set(SMALLTALK_FLAGS_avx2 -mavx2 -mfma)
set(SMALLTALK_FLAGS_sse2 -msse2)
set(SMALLTALK_FLAGS_neon)

# smalltalk_add_kernels(<library> CHOOSER <file> SOURCES <file>... SETS <set>... [OPTIONS <flag>...])
# Adds to smalltalk_<library> a copy of SOURCES for each of SETS that the target processor can have.
# The sources see the set's name as ST_ISA, the namespace of all that they define, and as the text
# ST_ISA_NAME. CHOOSER, one of the library's own sources, sees the list of copies as ST_COPIES(DO),
# which is DO(set) for each.
function(smalltalk_add_kernels library)
  cmake_parse_arguments(arg "" "CHOOSER" "SOURCES;SETS;OPTIONS" ${ARGN})
  get_filename_component(family ${arg_CHOOSER} NAME_WE)
  set(copies)
  foreach(set IN LISTS arg_SETS)
    if(NOT set IN_LIST SMALLTALK_INSTRUCTION_SETS)
      continue()
    endif()
    set(target smalltalk_${family}_${set})
    add_library(${target} OBJECT ${arg_SOURCES})
    target_include_directories(${target} PRIVATE
      ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
    target_compile_definitions(${target} PRIVATE ST_ISA=${set} ST_ISA_NAME="${set}")
    # Always optimised: a function of the standard library that is not inlined would be shared with
    # code for other processors.
    target_compile_options(${target} PRIVATE -O3 ${arg_OPTIONS} ${SMALLTALK_FLAGS_${set}})
    target_link_libraries(${target} PRIVATE smalltalk_options)
    target_sources(smalltalk_${library} PRIVATE $<TARGET_OBJECTS:${target}>)
    set_property(GLOBAL APPEND PROPERTY SMALLTALK_KERNEL_OBJECTS $<TARGET_OBJECTS:${target}>)
    string(APPEND copies " DO(${set})")
  endforeach()
  set_property(SOURCE ${arg_CHOOSER} APPEND PROPERTY COMPILE_OPTIONS "-DST_COPIES(DO)=${copies}")
endfunction()
