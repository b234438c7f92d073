/// LOWRANK_TRACE=1: one line per op on standard error, with its time.
#pragma once

#include <string>

namespace lowrank {

bool TraceEnabled();
void TraceOp(const char* device, const std::string& description, double microseconds);

}  // namespace lowrank
