#include "native/cuda/driver/kernel_image.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

#include "native/cuda/driver/library.h"

namespace lowrank::cuda {
namespace {

constexpr const char* kMagic = "lowrank-kernels";
constexpr const char* kVersion = "2";
constexpr size_t kAlignment = 64;

Status Broken(const std::string& path, const std::string& what) {
  return Status(Code::kDevice, "kernels: " + path + " " + what);
}

/// The words of a line, separated by single spaces; other white space gives an empty word.
std::vector<std::string> Fields(const std::string& line, char separator) {
  std::vector<std::string> words;
  std::istringstream in(line);
  for (std::string word; std::getline(in, word, separator);) words.push_back(word);
  return words;
}

/// False unless it is 1 to 15 digits: no sign, and no overflow.
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

struct Target {
  int sm = 0;  // 0: not understood
  bool ptx = false;
  bool this_alone = false;
};

/// "sm_90a", "compute_80"
Target ParseTarget(const std::string& text) {
  Target target;
  const size_t mark = text.find('_');
  if (mark == std::string::npos) return target;
  std::string number = text.substr(mark + 1);
  target.ptx = text.compare(0, mark, "compute") == 0;
  target.this_alone = !number.empty() && number.back() == 'a';
  if (target.this_alone) number.pop_back();
  size_t parsed = 0;
  if (!ParseNumber(number, &parsed)) return Target();
  target.sm = static_cast<int>(parsed);
  return target;
}

/// "13.0.88" as a driver version, 13000; 0 if it is not a version.
int ParseVersion(const std::string& text) {
  const auto parts = Fields(text, '.');
  size_t major = 0;
  size_t minor = 0;
  if (parts.size() < 2 || !ParseNumber(parts[0], &major) || !ParseNumber(parts[1], &minor))
    return 0;
  if (major > 1000 || minor > 99) return 0;
  return static_cast<int>(major * 1000 + minor * 10);
}

/// The first driver that compiles a PTX version (PTX ISA, release history: the toolkit it came
/// with); for a version newer than this table, the version of the toolkit that made it.
int DriverOfPtx(int ptx_version, int compiler_version) {
  const int major = ptx_version / 1000;
  const int minor = ptx_version % 1000 / 10;
  if (major == 8) return 12000 + 10 * (minor <= 5 ? minor : minor + 1);
  if (major == 9) return 13000 + 10 * minor;
  return compiler_version;
}

/// The name of the first driver branch of a version, in parentheses, if known.
std::string DriverBranch(int version) {
  constexpr struct {
    int version;
    const char* name;
  } kBranches[] = {
      {12000, "R525"}, {12010, "R530"}, {12020, "R535"}, {12030, "R545"},
      {12040, "R550"}, {12050, "R555"}, {12060, "R560"}, {12070, "R565"},
      {12080, "R570"}, {12090, "R575"}, {13000, "R580"}, {13010, "R590"},
  };
  for (const auto& branch : kBranches) {
    if (branch.version == version) return " (" + std::string(branch.name) + ")";
  }
  return "";
}

}  // namespace

// The driver compiles PTX for any later device; machine code runs only within its generation.
bool KernelModule::HasPtxFor(int sm) const {
  return std::any_of(targets.begin(), targets.end(), [sm](const std::string& text) {
    const Target target = ParseTarget(text);
    return target.ptx && (target.this_alone ? sm == target.sm : sm >= target.sm);
  });
}

bool KernelModule::HasCodeFor(int sm) const {
  return std::any_of(targets.begin(), targets.end(), [sm](const std::string& text) {
    const Target target = ParseTarget(text);
    if (target.ptx || target.sm == 0) return false;
    return target.this_alone ? sm == target.sm : sm >= target.sm && sm / 10 == target.sm / 10;
  });
}

Status KernelImage::CheckDriver(int driver_version, int sm) const {
  // Of the modules of one name, the first that the device can run is loaded.
  std::string name;
  int needed = 0;
  bool by_ptx = false;
  for (const KernelModule& module : modules_) {
    if (module.name == name || !module.RunsOn(sm)) continue;
    name = module.name;
    const bool code = module.HasCodeFor(sm);
    const int needs = code ? compiler_version_ / 1000 * 1000 : ptx_driver_version_;
    if (needs > needed) {
      needed = needs;
      by_ptx = !code;
    }
  }
  if (driver_version >= needed) return Status();
  return Status(Code::kDevice,
                "the driver supports CUDA " + VersionText(driver_version) +
                    "; these kernels were built with " + compiler_ +
                    (by_ptx ? ", are PTX " + ptx_ + " for sm_" + std::to_string(sm) : "") +
                    " and need a driver of CUDA " + VersionText(needed) + DriverBranch(needed) +
                    " or later: update the driver, or build with an older nvcc" +
                    (by_ptx ? " or for sm_" + std::to_string(sm) : ""));
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
  if (first.size() != 3 || first[0] != kMagic) return Broken(path, "is not a kernel file");
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
      result.compiler_version_ = ParseVersion(words.back());
    } else if (words.size() == 2 && words[0] == "ptx") {
      result.ptx_ = words[1];
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
  const int ptx_version = ParseVersion(result.ptx_);
  if (result.compiler_version_ == 0 || ptx_version == 0) {
    return Broken(path, "does not name its compiler and PTX version");
  }
  result.ptx_driver_version_ = DriverOfPtx(ptx_version, result.compiler_version_);
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
