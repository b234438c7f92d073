#include "cuda/emulator/driver/json.h"

#include <cstdio>

namespace lowrank::emu::driver {

void JsonWriter::Separate() {
  if (separate_) text_ += ',';
  separate_ = true;
}

JsonWriter& JsonWriter::Open(char bracket) {
  Separate();
  text_ += bracket;
  separate_ = false;
  return *this;
}

JsonWriter& JsonWriter::Close(char bracket) {
  text_ += bracket;
  separate_ = true;
  return *this;
}

JsonWriter& JsonWriter::Key(const std::string& key) {
  Text(key);
  text_ += ':';
  separate_ = false;
  return *this;
}

JsonWriter& JsonWriter::Text(const std::string& value) {
  Separate();
  text_ += '"';
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      text_ += '\\';
      text_ += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned>(c));
      text_ += escape;
    } else {
      text_ += c;
    }
  }
  text_ += '"';
  return *this;
}

JsonWriter& JsonWriter::Number(uint64_t value) {
  Separate();
  text_ += std::to_string(value);
  return *this;
}

}  // namespace lowrank::emu::driver
