/// Devices by name. A backend is one row of the table in registry.cpp.
#pragma once

#include <string>
#include <vector>

#include "native/core/runtime/backend.h"

namespace lowrank {

/// The backend of a public device name, started on first use and never destroyed (its threads
/// outlive every environment). kDevice lists the known devices, or says why one is absent. It does
/// not look at other devices: for a host device, no driver is opened.
Status FindBackend(const std::string& device, Backend** backend);

/// The same, present or not: for what a device can report even after it was lost.
Status FindKnownBackend(const std::string& device, Backend** backend);

/// Every device this build knows, present or not. Looks for GPUs.
std::vector<DeviceInfo> ListDevices();

/// The names of those that are known without looking. Only the first GPU is known until one has
/// been requested.
std::vector<std::string> KnownDeviceNames();

/// Backend::DropQueued on every started device.
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
