#include "native/cuda/kernel_image.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

namespace lowrank::cuda {
namespace {

constexpr const char* kMagic = "lowrank-kernels";
constexpr const char* kVersion = "1";
constexpr size_t kAlignment = 64;

Status Broken(const std::string& path, const std::string& what) {
  return Status(Code::kDevice, "kernels: " + path + " " + what);
}

/// The words of a line between single spaces; a line with other white space gives an empty word.
std::vector<std::string> Fields(const std::string& line, char separator) {
  std::vector<std::string> words;
  std::istringstream in(line);
  for (std::string word; std::getline(in, word, separator);) words.push_back(word);
  return words;
}

/// False for anything but 1 to 15 digits: no sign, and no overflow.
bool ParseNumber(const std::string& text, size_t* value) {
  if (text.empty() || text.size() > 15) return false;
  size_t total = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    total = total * 10 + static_cast<size_t>(c - '0');
  }
  *value = total;
  return true;
}

}  // namespace

bool KernelModule::RunsOn(int sm) const {
  return std::any_of(targets.begin(), targets.end(), [sm](const std::string& target) {
    const size_t mark = target.find('_');
    if (mark == std::string::npos) return false;
    std::string number = target.substr(mark + 1);
    const bool this_alone = !number.empty() && number.back() == 'a';
    if (this_alone) number.pop_back();
    size_t parsed = 0;
    if (!ParseNumber(number, &parsed)) return false;
    const int built_for = static_cast<int>(parsed);
    if (this_alone) return sm == built_for;
    // PTX is compiled by the driver for any later device, machine code runs within its generation.
    if (target.compare(0, mark, "compute") == 0) return sm >= built_for;
    return sm >= built_for && sm / 10 == built_for / 10;
  });
}

Status KernelImage::Open(const std::string& path, KernelImage* image) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Broken(path, "cannot be read");
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return Parse(std::move(bytes), path, image);
}

Status KernelImage::Parse(std::vector<char> bytes, const std::string& path, KernelImage* image) {
  KernelImage result;
  result.bytes_ = std::move(bytes);
  const auto& data = result.bytes_;
  const auto first_end = std::find(data.begin(), data.end(), '\n');
  const auto first = Fields(std::string(data.begin(), first_end), ' ');
  size_t index_bytes = 0;
  if (first.size() != 3 || first[0] != kMagic) return Broken(path, "is no file of kernels");
  if (first[1] != kVersion) {
    return Broken(path, "has format " + first[1] + ", this addon reads " + kVersion +
                            ": build both again with npm run build");
  }
  if (!ParseNumber(first[2], &index_bytes) || index_bytes > data.size()) {
    return Broken(path, "is cut short");
  }
  const auto body = first_end - data.begin() + 1;
  if (static_cast<size_t>(body) > index_bytes) return Broken(path, "has no index");
  std::istringstream index(
      std::string(data.begin() + body, data.begin() + static_cast<std::ptrdiff_t>(index_bytes)));
  for (std::string line; std::getline(index, line);) {
    const auto words = Fields(line, ' ');
    if (words.size() >= 2 && words[0] == "compiler") {
      result.compiler_ = line.substr(words[0].size() + 1);
    } else if (words.size() == 5 && words[0] == "module") {
      KernelModule module;
      size_t offset_bytes = 0;
      module.name = words[1];
      if (!ParseNumber(words[2], &offset_bytes) || !ParseNumber(words[3], &module.image_bytes) ||
          offset_bytes % kAlignment != 0 || offset_bytes > data.size() ||
          module.image_bytes > data.size() - offset_bytes) {
        return Broken(path, "is cut short in module " + module.name);
      }
      module.image = data.data() + offset_bytes;
      module.targets = Fields(words[4], ',');
      result.modules_.push_back(std::move(module));
    } else if (words.size() == 2 && words[0] == "kernel" && !result.modules_.empty()) {
      result.modules_.back().kernels.push_back(words[1]);
    } else {
      return Broken(path, "has a line that is not understood: " + line.substr(0, 80));
    }
  }
  // A moved vector keeps its memory, so the modules' pointers stay true.
  *image = std::move(result);
  return Status();
}

std::vector<std::string> KernelImage::Targets() const {
  std::vector<std::string> all;
  for (const KernelModule& module : modules_) {
    for (const std::string& target : module.targets) {
      if (std::find(all.begin(), all.end(), target) == all.end()) all.push_back(target);
    }
  }
  return all;
}

}  // namespace lowrank::cuda
