# The functions with which the folders declare their libraries, and the third-party ones.

# smalltalk_find(<target> [OPTIONAL] HEADER <header> [LIBRARIES <name>...])
# A third-party library by its header and, unless it is header only, its library files: works with
# Debian packages, modules and prefixes alike (CMAKE_PREFIX_PATH). Defines the target once; not at
# all where an OPTIONAL one is missing.
function(smalltalk_find target)
  cmake_parse_arguments(arg "OPTIONAL" "HEADER" "LIBRARIES" ${ARGN})
  if(TARGET smalltalk::${target})
    return()
  endif()
  string(TOUPPER "SMALLTALK_${target}" variable)
  find_path(${variable}_INCLUDE_DIR ${arg_HEADER})
  if(arg_OPTIONAL AND NOT ${variable}_INCLUDE_DIR)
    message(STATUS "${arg_HEADER} not found: what needs it is left out")
    return()
  endif()
  if(NOT ${variable}_INCLUDE_DIR)
    message(FATAL_ERROR "${arg_HEADER} not found: install it (ci/setup.sh does on Debian) "
                        "or add its prefix to CMAKE_PREFIX_PATH")
  endif()
  add_library(smalltalk::${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(smalltalk::${target} INTERFACE ${${variable}_INCLUDE_DIR})
  foreach(name IN LISTS arg_LIBRARIES)
    find_library(${variable}_${name}_LIBRARY ${name} REQUIRED)
    target_link_libraries(smalltalk::${target} INTERFACE ${${variable}_${name}_LIBRARY})
  endforeach()
  mark_as_advanced(${variable}_INCLUDE_DIR)
endfunction()

# fmt is header only here: LibTorch ships another version of its headers, which shadows the
# system's in `lm`, and their compiled symbols must never meet.
function(smalltalk_find_fmt)
  if(NOT TARGET smalltalk::fmt)
    smalltalk_find(fmt HEADER fmt/format.h)
    target_compile_definitions(smalltalk::fmt INTERFACE FMT_HEADER_ONLY=1)
  endif()
endfunction()

# xxHash is inlined: nothing to link, no symbols that could meet another copy of it.
function(smalltalk_find_xxhash)
  if(NOT TARGET smalltalk::xxhash)
    smalltalk_find(xxhash HEADER xxhash.h)
    target_compile_definitions(smalltalk::xxhash INTERFACE XXH_INLINE_ALL=)
  endif()
endfunction()

# smalltalk_add_library(<name> SOURCES <file>... USES <library>... [PUBLIC <target>...]
#                       [PRIVATE <target>...])
# A static library smalltalk_<name>, alias smalltalk::<name>. USES names the libraries below it.
function(smalltalk_add_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;USES;PUBLIC;PRIVATE" ${ARGN})
  foreach(used IN LISTS arg_USES)
    if(NOT TARGET smalltalk::${used})
      message(FATAL_ERROR "SMALLTALK_LIBRARIES: '${name}' needs '${used}' before it")
    endif()
  endforeach()
  add_library(smalltalk_${name} STATIC ${arg_SOURCES})
  add_library(smalltalk::${name} ALIAS smalltalk_${name})
  target_include_directories(smalltalk_${name}
    PUBLIC ${PROJECT_SOURCE_DIR}/include PRIVATE ${PROJECT_SOURCE_DIR}/src)
  list(TRANSFORM arg_USES PREPEND smalltalk::)
  target_link_libraries(smalltalk_${name}
    PUBLIC ${arg_USES} ${arg_PUBLIC}
    PRIVATE $<BUILD_INTERFACE:smalltalk_options> ${arg_PRIVATE})
  smalltalk_compile_eight_as_one(smalltalk_${name})
endfunction()

# smalltalk_embed(<target> <template> <file>...)
# Adds the source that the template makes of files beside it: @<file>@ there is the file's text.
function(smalltalk_embed target template)
  get_filename_component(template ${template} ABSOLUTE)
  get_filename_component(folder ${template} DIRECTORY)
  get_filename_component(source ${template} NAME_WLE)
  foreach(file IN LISTS ARGN)
    file(READ ${folder}/${file} ${file})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${folder}/${file})
  endforeach()
  configure_file(${template} ${CMAKE_CURRENT_BINARY_DIR}/${source} @ONLY)
  target_sources(${target} PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/${source})
endfunction()
