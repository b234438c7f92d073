/// Devices by name. A backend is one row of the table in registry.cpp.
#pragma once

#include <string>
#include <vector>

#include "native/core/runtime/backend.h"

namespace lowrank {

/// The backend of a public device name, started on first use and never destroyed (its threads
/// outlive every environment). kDevice names the known devices; an absent one says why. No other
/// device is looked at: for one of the host's no driver is opened.
Status FindBackend(const std::string& device, Backend** backend);

/// The same, present or not: for what a device can tell even after it was lost.
Status FindKnownBackend(const std::string& device, Backend** backend);

/// Every device this build knows, present or not. Looks for GPUs.
std::vector<DeviceInfo> ListDevices();

/// The names of those, as far as they are known without looking: of GPUs the first, until somebody
/// has asked for one.
std::vector<std::string> KnownDeviceNames();

/// Backend::DropQueued on every device that was started.
void DropQueued(const CancelToken* cancel);

/// Threads of the CPU device, at least 1. Results never depend on it.
void SetThreads(int threads);
int GetThreads();

/// Defined by each backend's folder.
Backend* CpuBackend();
Backend* ReferenceBackend();
std::vector<Backend*> CudaBackends();  // "cuda", "cuda:1", ...; at least one
Backend* CudaEmulatedBackend();
void SetCpuThreads(int threads);
int GetCpuThreads();

}  // namespace lowrank
