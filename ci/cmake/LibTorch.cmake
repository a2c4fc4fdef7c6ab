# LibTorch as the targets smalltalk::torch and, with SMALLTALK_CUDA, smalltalk::torch_cuda.
#
# The libraries are imported by file, not through find_package(Torch): that needs nvcc even where
# only the CPU half is used, and adds the CUDA driver library, which no build machine has. One way
# thus serves the wheel (ci/setup.sh), a LibTorch archive and a cluster's module.
set(SMALLTALK_VENV "$ENV{SMALLTALK_VENV}")
if(NOT SMALLTALK_VENV)
  set(SMALLTALK_VENV ${PROJECT_SOURCE_DIR}/build/venv)
endif()
file(GLOB wheel_root ${SMALLTALK_VENV}/lib/python3*/site-packages/torch)
if(Torch_DIR)  # .../share/cmake/Torch
  get_filename_component(torch_dir_root ${Torch_DIR}/../../.. ABSOLUTE)
endif()
find_path(SMALLTALK_TORCH_ROOT include/torch/csrc/api/include/torch/torch.h
  HINTS ${torch_dir_root} ${wheel_root} DOC "Root of LibTorch, or the torch folder of the wheel")
if(NOT SMALLTALK_TORCH_ROOT)
  message(FATAL_ERROR "LibTorch not found: run ci/setup.sh, or set SMALLTALK_TORCH_ROOT or "
                      "CMAKE_PREFIX_PATH to your own")
endif()

file(STRINGS ${SMALLTALK_TORCH_ROOT}/include/torch/headeronly/version.h version_lines
     REGEX "define TORCH_VERSION_(MAJOR|MINOR) ")
string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*" "\\1.\\2" SMALLTALK_TORCH_VERSION
       "${version_lines}")
message(STATUS "LibTorch ${SMALLTALK_TORCH_VERSION}: ${SMALLTALK_TORCH_ROOT}")

# The wheel keeps NVIDIA's libraries beside the torch folder, where libtorch finds them through its
# own RPATH. Our CUDA library names the CUDA runtime itself, and must load the same one.
set(nvidia ${SMALLTALK_TORCH_ROOT}/../nvidia)
file(GLOB nvidia_folders ${nvidia}/*/lib)
file(GLOB runtime ${nvidia}/*/lib/libcudart.so.*)
set(SMALLTALK_TORCH_RPATH ${SMALLTALK_TORCH_ROOT}/lib)
foreach(library IN LISTS runtime)
  get_filename_component(folder ${library} DIRECTORY)
  get_filename_component(folder ${folder} ABSOLUTE)
  list(APPEND SMALLTALK_TORCH_RPATH ${folder})
endforeach()

add_library(smalltalk::torch INTERFACE IMPORTED GLOBAL)
target_include_directories(smalltalk::torch INTERFACE
  ${SMALLTALK_TORCH_ROOT}/include ${SMALLTALK_TORCH_ROOT}/include/torch/csrc/api/include)
target_compile_definitions(smalltalk::torch INTERFACE USE_DISTRIBUTED)
# What libtorch itself needs is resolved when the program starts.
target_link_options(smalltalk::torch INTERFACE -Wl,--allow-shlib-undefined)
foreach(folder IN LISTS nvidia_folders ITEMS ${SMALLTALK_TORCH_ROOT}/lib)
  target_link_options(smalltalk::torch INTERFACE -Wl,-rpath-link,${folder})
endforeach()
# Before all others: of the BLAS that it holds and the one that FAISS is linked to, the first is the
# one that everybody calls.
target_link_options(smalltalk::torch INTERFACE
  LINKER:--push-state,--no-as-needed,${SMALLTALK_TORCH_ROOT}/lib/libtorch_cpu.so,--pop-state)
target_link_libraries(smalltalk::torch INTERFACE
  ${SMALLTALK_TORCH_ROOT}/lib/libtorch_cpu.so ${SMALLTALK_TORCH_ROOT}/lib/libc10.so)

if(SMALLTALK_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES 80 90 100 CACHE STRING "GPU generations to build for (A100, H100, B200)")
  set(CMAKE_CUDA_STANDARD 20)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  # Two CUDA runtimes in one process do not share a context: the toolkit's must be libtorch's.
  execute_process(COMMAND ${CMAKE_READELF} -d ${SMALLTALK_TORCH_ROOT}/lib/libc10_cuda.so
    OUTPUT_VARIABLE needed ERROR_VARIABLE readelf_error)
  if(needed MATCHES "libcudart\\.so\\.([0-9]+)" AND
     NOT CMAKE_MATCH_1 EQUAL CUDAToolkit_VERSION_MAJOR)
    message(FATAL_ERROR "LibTorch is built for CUDA ${CMAKE_MATCH_1}, but nvcc is "
      "${CUDAToolkit_VERSION}: load the matching toolkit or set SMALLTALK_CUDA=OFF")
  endif()

  # Another nccl.h links and then crashes: its option structs differ in size.
  set(SMALLTALK_NCCL_VERSION_CODE 22809 CACHE STRING "The NCCL version LibTorch was built with")
  find_path(SMALLTALK_NCCL_INCLUDE_DIR nccl.h HINTS ${nvidia}/nccl/include)
  if(NOT SMALLTALK_NCCL_INCLUDE_DIR)
    message(FATAL_ERROR "nccl.h not found: set SMALLTALK_NCCL_INCLUDE_DIR")
  endif()
  file(STRINGS ${SMALLTALK_NCCL_INCLUDE_DIR}/nccl.h nccl_line REGEX "define NCCL_VERSION_CODE ")
  if(NOT nccl_line MATCHES "NCCL_VERSION_CODE ${SMALLTALK_NCCL_VERSION_CODE}")
    message(FATAL_ERROR "${SMALLTALK_NCCL_INCLUDE_DIR}/nccl.h says '${nccl_line}', but LibTorch "
      "was built with ${SMALLTALK_NCCL_VERSION_CODE} (torch.cuda.nccl.version() of the same "
      "PyTorch tells): point SMALLTALK_NCCL_INCLUDE_DIR to that header, and set "
      "SMALLTALK_NCCL_VERSION_CODE for another LibTorch")
  endif()
  add_library(smalltalk::torch_cuda INTERFACE IMPORTED GLOBAL)
  target_include_directories(smalltalk::torch_cuda INTERFACE ${SMALLTALK_NCCL_INCLUDE_DIR})
  target_compile_definitions(smalltalk::torch_cuda INTERFACE USE_C10D_NCCL)
  # Our code may name few symbols of torch_cuda, which yet registers the CUDA kernels: keep it.
  target_link_libraries(smalltalk::torch_cuda INTERFACE smalltalk::torch CUDA::cudart
    -Wl,--no-as-needed ${SMALLTALK_TORCH_ROOT}/lib/libtorch_cuda.so
    ${SMALLTALK_TORCH_ROOT}/lib/libc10_cuda.so -Wl,--as-needed)
endif()
