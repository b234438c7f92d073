/// Quantisation formats, with one row and one codec each. The values of the codebooks are only here
/// in C++ (test/oracle/quantise.ts has its own copy, from the definition). Every device runs every
/// format of the table.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lowrank {

/// One row per format. Encoding is a rank: with v = value · (1 / absmax) (in f32, as in
/// bitsandbytes' CUDA quantiser), the code is rank_to_code[number of thresholds t with v > t]. A
/// sign-magnitude format ranks |v| and sets the top bit of the code for v < 0.
struct FormatRow {
  const char* name;         // as in lib/core/formats.ts
  int bits;                 // 4 or 8
  int levels;               // entries in the codebook
  const float* codebook;    // [levels], value of each code for absmax = 1
  const float* thresholds;  // [threshold_count], ascending
  int threshold_count;
  const uint8_t* rank_to_code;  // [threshold_count + 1]
  bool sign_magnitude;
  uint8_t zero_code;  // what a block of zeros holds (the peer's choice), and the low nibble of an
                      // odd tail
  int64_t min_blocksize;  // powers of two from here ...
  int64_t max_blocksize;  // ... to here
  int64_t default_blocksize;

  /// Code of a normalised value.
  uint8_t Encode(float normalised) const;
};

/// Null if the name is unknown.
const FormatRow* FindFormat(const std::string& name);
int FormatCount();
const FormatRow& FormatAt(int index);
/// The names of the formats with this many bits; 0: of all.
std::vector<std::string> FormatNames(int bits = 0);

/// The row of planar weights with `bits` 1 to 8: 16 levels up to 4 bits, else 256, which each
/// weight has of its own. It has no quantiser and is not in the table.
const FormatRow* PlanarFormat(int bits);

/// The signed dynamic 8-bit map (bitsandbytes `create_dynamic_map(signed=True)`), ascending, [256].
/// The codebook of int8 and of double-quantised absmax.
const float* DynamicMap8bit();

/// The levels of rowwise codes: (code - 128) / 127, [256].
const float* RowwiseLevels();

}  // namespace lowrank
