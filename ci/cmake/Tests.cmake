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

# Gives a program tests/mpi_test_main.cpp, which is compiled once.
function(smalltalk_add_mpi_main target)
  find_package(MPI REQUIRED COMPONENTS C)  # in the folder of this program, too
  if(NOT TARGET mpi_test_main)
    add_library(mpi_test_main OBJECT ${PROJECT_SOURCE_DIR}/tests/mpi_test_main.cpp)
    target_link_libraries(mpi_test_main
      PRIVATE smalltalk::comm smalltalk_options GTest::gtest MPI::MPI_C)
    target_compile_options(mpi_test_main PRIVATE $<$<CONFIG:Release>:-O1>)
  endif()
  target_link_libraries(${target} PRIVATE mpi_test_main GTest::gtest MPI::MPI_C)
endfunction()

# smalltalk_add_test(<folder>/<name> [LIBRARIES <library>...] [SOURCES <file>...] [LABEL <label>]
#                    [RANKS <n>...] [TIMEOUT <seconds>] [WHOLE])
# A GoogleTest program from <name>_test.cpp and SOURCES, linked to LIBRARIES (default: <folder>).
#   RANKS  one ctest entry per world size, through mpirun, with tests/mpi_test_main.cpp (label mpi)
#   LABEL  unit (default), mpi, e2e, slurm or gpu
#   WHOLE  one ctest entry for the program instead of one a case: for programs slow to start
#          (always so for those that load LibTorch)
function(smalltalk_add_test name)
  cmake_parse_arguments(arg "WHOLE" "LABEL;TIMEOUT" "LIBRARIES;SOURCES;RANKS" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "smalltalk_add_test(${name}): unknown arguments ${arg_UNPARSED_ARGUMENTS}")
  endif()
  get_filename_component(folder ${name} DIRECTORY)
  get_filename_component(stem ${name} NAME)
  string(REPLACE "/" "_" target "test_${name}")
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
  set(links_torch FALSE)
  foreach(library lm mixture jobs)
    if(library IN_LIST arg_LIBRARIES AND SMALLTALK_TORCH)
      set(links_torch TRUE)
    endif()
  endforeach()
  list(TRANSFORM arg_LIBRARIES PREPEND smalltalk::)

  add_executable(${target} ${stem}_test.cpp ${arg_SOURCES})
  set_property(GLOBAL APPEND PROPERTY SMALLTALK_TEST_SOURCES
    ${CMAKE_CURRENT_SOURCE_DIR}/${stem}_test.cpp)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${target} PRIVATE ${arg_LIBRARIES} smalltalk_options GTest::gmock)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-restrict)  # false alarms on "a" + std::string
  endif()
  if(arg_LABEL STREQUAL "e2e")
    set(level -O0)  # starts programs, computes nothing
  else()
    set(level -O1)
  endif()
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:${level}>)  # compiles faster

  if(arg_RANKS)
    smalltalk_add_mpi_main(${target})
    foreach(ranks IN LISTS arg_RANKS)
      add_test(NAME ${name}.ranks_${ranks}
        COMMAND ${SMALLTALK_MPIRUN} ${mpirun_flags} -n ${ranks} $<TARGET_FILE:${target}>)
      smalltalk_configure_test(${name}.ranks_${ranks} ${arg_LABEL} ${ranks} ${arg_TIMEOUT})
    endforeach()
    return()
  endif()

  target_link_libraries(${target} PRIVATE GTest::gtest GTest::gtest_main)
  if(links_torch OR arg_WHOLE)
    add_test(NAME ${name} COMMAND ${target})
    smalltalk_configure_test(${name} ${arg_LABEL} 1 ${arg_TIMEOUT})
  else()
    # A list cannot pass through gtest_discover_tests, so these read their environment from env.
    set_target_properties(${target} PROPERTIES
      CROSSCOMPILING_EMULATOR "${CMAKE_COMMAND};-E;env;${test_environment};${CMAKE_CROSSCOMPILING_EMULATOR}")
    gtest_discover_tests(${target} TEST_PREFIX "${folder}/" DISCOVERY_TIMEOUT 60
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
      PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT} COST ${arg_TIMEOUT})
  endif()
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
        message(SEND_ERROR "${file} is not registered: add smalltalk_add_test() to its CMakeLists.txt")
      endif()
    endforeach()
  endforeach()
endfunction()
