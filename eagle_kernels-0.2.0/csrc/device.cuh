// How code is marked for host and device, and how CUDA calls are checked. Host compilers may include it.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#define EAGLE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define EAGLE_HOST_DEVICE inline
#endif

namespace eagle {

#ifdef __CUDACC__

// Throws std::runtime_error (Python: RuntimeError) with CUDA's own words.
inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status) +
                           ".");
}

// A launch's own error (a bad configuration, no code for this GPU). What the kernel does later is seen at the next
// synchronisation, as with every asynchronous call.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

// Makes `device` current for a scope. Our CUDA runtime is linked statically, so torch's choice of device is not ours.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

#endif

}  // namespace eagle
