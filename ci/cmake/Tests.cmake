# How tests are registered, so that none is ever forgotten.
include(GoogleTest)
if(CMAKE_CROSSCOMPILING)  # Debian's package has the sources, too
  add_subdirectory(/usr/src/googletest ${PROJECT_BINARY_DIR}/googletest EXCLUDE_FROM_ALL)
else()
  find_package(GTest REQUIRED)
endif()
find_package(Python3 REQUIRED COMPONENTS Interpreter)

find_program(SMALLTALK_MPIRUN mpirun)
# Two waiting ranks on one core must yield to each other; the rest is for containers.
set(SMALLTALK_MPIRUN_FLAGS
  "--oversubscribe;--bind-to;none;--mca;mpi_yield_when_idle;1;--mca;btl_vader_single_copy_mechanism;none"
  CACHE STRING "Flags of mpirun in tests")
execute_process(COMMAND id -u OUTPUT_VARIABLE user_id OUTPUT_STRIP_TRAILING_WHITESPACE)
set(mpirun_flags ${SMALLTALK_MPIRUN_FLAGS})
if(user_id EQUAL 0)
  list(PREPEND mpirun_flags --allow-run-as-root)
endif()
list(JOIN mpirun_flags " " mpirun_flags_text)
set(SMALLTALK_MPIRUN_COMMAND "${SMALLTALK_MPIRUN} ${mpirun_flags_text}")

set(peer_venv "$ENV{SMALLTALK_PEER_VENV}")
if(NOT peer_venv)
  set(peer_venv ${PROJECT_SOURCE_DIR}/build/peer-venv)
endif()

# What a test may ask its environment for.
set(test_environment
  OMP_NUM_THREADS=1
  SMALLTALK_SOURCE_DIR=${PROJECT_SOURCE_DIR}
  SMALLTALK_BUILD_DIR=${PROJECT_BINARY_DIR}
  SMALLTALK_BINARY=${PROJECT_BINARY_DIR}/smalltalk
  SMALLTALK_PEER_PYTHON=${peer_venv}/bin/python3
  "SMALLTALK_MPIRUN=${SMALLTALK_MPIRUN_COMMAND}")

# What may take long begins first (COST).
function(smalltalk_configure_test name label ranks timeout)
  set_tests_properties(${name} PROPERTIES
    LABELS ${label} PROCESSORS ${ranks} TIMEOUT ${timeout} COST ${timeout} SKIP_RETURN_CODE 77
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    ENVIRONMENT "${test_environment}")
endfunction()

# The main of a test program.
add_library(test_main OBJECT ${PROJECT_SOURCE_DIR}/tests/test_main.cpp)
target_link_libraries(test_main PRIVATE smalltalk_options GTest::gtest)
target_compile_options(test_main PRIVATE $<$<CONFIG:Release>:-O0>)

# Gives a program tests/mpi_test_main.cpp, which is compiled once.
function(smalltalk_add_mpi_main target)
  find_package(MPI REQUIRED COMPONENTS C)  # in the folder of this program, too
  if(NOT TARGET mpi_test_main)
    add_library(mpi_test_main OBJECT ${PROJECT_SOURCE_DIR}/tests/mpi_test_main.cpp)
    target_link_libraries(mpi_test_main
      PRIVATE smalltalk::comm smalltalk_options GTest::gtest MPI::MPI_C)
    target_compile_options(mpi_test_main PRIVATE $<$<CONFIG:Release>:-O0>)
  endif()
  target_link_libraries(${target} PRIVATE mpi_test_main GTest::gtest MPI::MPI_C)
endfunction()

# smalltalk_add_tests(<folder> <name>... [PROGRAM <program>] [LIBRARIES <library>...]
#                     [SOURCES <file>...] [LABEL <label>] [RANKS <n>...] [TIMEOUT <seconds>] [WHOLE])
# A GoogleTest program, tests/<folder>/<program> (default: test_<folder>), from <name>_test.cpp of
# each name and SOURCES, linked to LIBRARIES (default: <folder>). Its tests are known as
# <folder>/<suite>.<case>.
#   RANKS  one ctest entry a world size, <folder>/<name>.ranks_<n>, through mpirun, with
#          tests/mpi_test_main.cpp (label mpi): for programs of one file
#   LABEL  unit (default), mpi, e2e, slurm or gpu
#   WHOLE  one ctest entry a file, <folder>/<name>, instead of one a case: for programs slow to start
#          (always so for those that load LibTorch)
function(smalltalk_add_tests folder)
  cmake_parse_arguments(arg "WHOLE" "PROGRAM;LABEL;TIMEOUT" "LIBRARIES;SOURCES;RANKS" ${ARGN})
  set(names ${arg_UNPARSED_ARGUMENTS})
  set(target test_${folder})
  if(arg_PROGRAM)
    set(target ${arg_PROGRAM})
  endif()
  if(NOT arg_LIBRARIES)
    set(arg_LIBRARIES ${folder})
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  if(SMALLTALK_SANITIZE OR CMAKE_CROSSCOMPILING)  # instrumented or emulated
    math(EXPR arg_TIMEOUT "5 * ${arg_TIMEOUT}")
  endif()
  if(NOT arg_LABEL)
    set(arg_LABEL unit)
    if(arg_RANKS)
      set(arg_LABEL mpi)
    endif()
  endif()
  foreach(library lm mixture jobs)
    if(library IN_LIST arg_LIBRARIES AND SMALLTALK_TORCH)
      set(arg_WHOLE TRUE)
    endif()
  endforeach()
  list(TRANSFORM arg_LIBRARIES PREPEND smalltalk::)
  list(TRANSFORM names APPEND _test.cpp OUTPUT_VARIABLE files)

  add_executable(${target} ${files} ${arg_SOURCES})
  list(TRANSFORM files PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  set_property(GLOBAL APPEND PROPERTY SMALLTALK_TEST_SOURCES ${files})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${target} PRIVATE ${arg_LIBRARIES} smalltalk_options GTest::gmock)
  smalltalk_compile_eight_as_one(${target})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-restrict)  # false alarms on "a" + std::string
  endif()
  set(level -O0)  # compiles faster
  if(folder STREQUAL "core")
    set(level -O1)  # compares with slow references
  endif()
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:${level}>)

  if(arg_RANKS)
    smalltalk_add_mpi_main(${target})
    foreach(ranks IN LISTS arg_RANKS)
      add_test(NAME ${folder}/${names}.ranks_${ranks}
        COMMAND ${SMALLTALK_MPIRUN} ${mpirun_flags} -n ${ranks} $<TARGET_FILE:${target}>)
      smalltalk_configure_test(${folder}/${names}.ranks_${ranks} ${arg_LABEL} ${ranks} ${arg_TIMEOUT})
    endforeach()
    return()
  endif()

  target_link_libraries(${target} PRIVATE test_main GTest::gtest)
  if(arg_WHOLE)
    foreach(name IN LISTS names)
      add_test(NAME ${folder}/${name} COMMAND ${target} --file=${name})
      smalltalk_configure_test(${folder}/${name} ${arg_LABEL} 1 ${arg_TIMEOUT})
    endforeach()
  else()
    # A list cannot pass through gtest_discover_tests, so these read their environment from env.
    set_target_properties(${target} PROPERTIES
      CROSSCOMPILING_EMULATOR "${CMAKE_COMMAND};-E;env;${test_environment};${CMAKE_CROSSCOMPILING_EMULATOR}")
    gtest_discover_tests(${target} TEST_PREFIX "${folder}/" DISCOVERY_TIMEOUT 60
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
      PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT} COST ${arg_TIMEOUT})
  endif()
endfunction()

# smalltalk_add_test(<folder>/<name> [...as above]): a program of its own, test_<folder>_<name>.
function(smalltalk_add_test name)
  get_filename_component(folder ${name} DIRECTORY)
  get_filename_component(stem ${name} NAME)
  smalltalk_add_tests(${folder} ${stem} PROGRAM test_${folder}_${stem} ${ARGN})
endfunction()

# smalltalk_add_command_test(<folder>/<name> COMMAND <argument>... [LABEL <label>] [RANKS <n>]
#                            [TIMEOUT <seconds>])
# Any command as a test, run in the source folder; it may leave with 77 to say "skipped". RANKS
# says how many cores it keeps busy.
function(smalltalk_add_command_test name)
  cmake_parse_arguments(arg "" "LABEL;TIMEOUT;RANKS" "COMMAND" ${ARGN})
  foreach(default "LABEL unit" "TIMEOUT 120" "RANKS 1")
    separate_arguments(default UNIX_COMMAND ${default})
    list(GET default 0 key)
    list(GET default 1 value)
    if(NOT arg_${key})
      set(arg_${key} ${value})
    endif()
  endforeach()
  add_test(NAME ${name} COMMAND ${arg_COMMAND} COMMAND_EXPAND_LISTS)
  smalltalk_configure_test(${name} ${arg_LABEL} ${arg_RANKS} ${arg_TIMEOUT})
endfunction()

# smalltalk_add_python_test(<folder>/<file without .py> [...as above]): a unittest file.
function(smalltalk_add_python_test name)
  smalltalk_add_command_test(${name} ${ARGN}
    COMMAND ${Python3_EXECUTABLE} -B ${PROJECT_SOURCE_DIR}/tests/${name}.py -v)
  set_property(GLOBAL APPEND PROPERTY SMALLTALK_TEST_SOURCES ${PROJECT_SOURCE_DIR}/tests/${name}.py)
endfunction()

# Fails when a test file of a configured folder is not registered.
function(smalltalk_check_all_tests_registered)
  get_property(registered GLOBAL PROPERTY SMALLTALK_TEST_SOURCES)
  set(folders ${SMALLTALK_LIBRARIES} ci)
  if("jobs" IN_LIST SMALLTALK_LIBRARIES)
    list(APPEND folders fuzz slurm)
  endif()
  foreach(folder IN LISTS folders)
    file(GLOB_RECURSE present CONFIGURE_DEPENDS
      ${PROJECT_SOURCE_DIR}/tests/${folder}/*_test.cpp ${PROJECT_SOURCE_DIR}/tests/${folder}/test_*.py)
    foreach(file IN LISTS present)
      if(NOT file IN_LIST registered)
        message(SEND_ERROR "${file} is not registered: name it in its CMakeLists.txt")
      endif()
    endforeach()
  endforeach()
endfunction()
