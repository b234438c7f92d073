/// Writing JSON, as little of it as reports need.
#pragma once

#include <cstdint>
#include <string>

namespace lowrank::emu::driver {

class JsonWriter {
 public:
  JsonWriter& BeginObject() { return Open('{'); }
  JsonWriter& EndObject() { return Close('}'); }
  JsonWriter& BeginArray() { return Open('['); }
  JsonWriter& EndArray() { return Close(']'); }
  JsonWriter& Key(const std::string& key);
  JsonWriter& Text(const std::string& value);
  JsonWriter& Number(uint64_t value);

  /// Key and value at once.
  JsonWriter& Text(const char* key, const std::string& value) { return Key(key).Text(value); }
  JsonWriter& Number(const char* key, uint64_t value) { return Key(key).Number(value); }

  const std::string& str() const { return text_; }

 private:
  JsonWriter& Open(char bracket);
  JsonWriter& Close(char bracket);
  void Separate();

  std::string text_;
  bool separate_ = false;  // a value stands before, in the same object or array
};

}  // namespace lowrank::emu::driver
