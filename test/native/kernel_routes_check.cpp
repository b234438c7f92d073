// docs/cpu-design.md against the kernels: the table of routes has the rows of route_table.cpp, and
// the table of routes by rows says what each instruction set chooses. A wrong route gives right
// results, only later, so no other check finds it.
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "native/core/ops/explain.h"
#include "native/cpu/route_table.h"
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

constexpr int64_t kMostRows = 128;  // above the largest limit of a route
constexpr int kThreads = 2;

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  std::string part;
  while (std::getline(stream, part, separator)) {
    const size_t first = part.find_first_not_of(' ');
    const size_t last = part.find_last_not_of(' ');
    parts.push_back(first == std::string::npos ? "" : part.substr(first, last - first + 1));
  }
  return parts;
}

const std::vector<std::string>& Page() {
  static const std::vector<std::string> lines = [] {
    std::ifstream file(std::string(LOWRANK_SOURCE_DIR) + "/docs/cpu-design.md");
    std::vector<std::string> read;
    std::string line;
    while (std::getline(file, line)) read.push_back(line);
    return read;
  }();
  return lines;
}

/// Cells of the rows of a table, which stands between two comments.
std::vector<std::vector<std::string>> TableOf(const std::string& name) {
  std::vector<std::vector<std::string>> rows;
  bool inside = false;
  int heading = 2;  // lines
  for (const std::string& line : Page()) {
    if (line == "<!-- end of " + name + " -->") inside = false;
    if (inside && heading-- <= 0) {
      std::vector<std::string> cells = Split(line, '|');
      cells.erase(cells.begin());  // before the first bar
      rows.push_back(cells);
    }
    if (line == "<!-- " + name + " -->") inside = true;
  }
  return rows;
}

/// Every product of a weight of 4,096 x 4,096 stands in the table once for each set.
const char* const kSets[] = {"portable",    "neon",        "avx2",      "avx512",
                             "avx512-vnni", "avx512-bf16", "avx512-amx"};
const char* const kWeights[] = {"f32", "bf16", "f16", "nf4", "fp4", "int4", "int8", "int8-rowwise"};
const char* const kTypes[] = {"f32", "bf16", "f16"};
const char* const kProducts[] = {"y", "y int8", "dx"};
constexpr const char* kWholeShape = "4096 × 4096";
/// What --routes prints: the whole weight, and others that the conditions of routes are about.
constexpr long long kShapes[][2] = {{4096, 4096}, {4096, 512},  {4096, 1000},
                                    {8, 4096},    {1024, 4096}, {1024, 16384}};

bool HasProduct(const std::string& product, const std::string& weight, const std::string& type) {
  if (FindFormat(weight) == nullptr && weight != "int8-rowwise") {
    return product != "y int8" && (weight == "f32" || weight == type);
  }
  return product != "y int8" || weight != "int8";
}

DType TypeOf(const std::string& name) {
  return name == "bf16" ? DType::kBF16 : name == "f16" ? DType::kF16 : DType::kF32;
}

struct Case {
  std::string product, weight, type;
  int64_t N, K;

  std::string Name() const {
    return product + " " + weight + " " + type + " " + std::to_string(N) + " x " +
           std::to_string(K);
  }
};

Route RouteOf(const KernelTable& table, const Case& c, int64_t rows) {
  CallShape shape;
  shape.M = rows;
  shape.N = c.N;
  shape.K = c.K;
  shape.dtype = TypeOf(c.type);
  shape.rowwise = c.weight == "int8-rowwise";
  shape.format = FindFormat(shape.rowwise ? "int8" : c.weight);
  if (shape.format != nullptr) {
    // A row of LLM.int8 has one scale, whatever the blocks.
    const int64_t whole = std::min(c.K & -c.K, shape.format->max_blocksize);
    shape.blocksize = shape.rowwise ? whole : shape.format->default_blocksize;
  }
  if (c.product == "y int8") shape.compute = Compute::kInt8;
  shape.dense = TypeOf(c.weight);
  const OpsOfShape ops(shape);
  if (c.product == "dx") {
    return table.routes->input_grad(ops.input_grad, false, kThreads).route;
  }
  const Status status = ops.matmul.Check();
  Report(status.ok(), c.Name() + ": " + status.message());
  return table.routes->forward(ops.matmul).route;
}

/// "1 `kLaneDots`, 33 `kLaneStrips`": each route with the number of rows from which on it is taken.
std::string RoutesByRows(const KernelTable& table, const Case& c) {
  std::string text;
  Route before = Route::kPanels;
  for (int64_t rows = 1; rows <= kMostRows; ++rows) {
    const Route route = RouteOf(table, c, rows);
    if (rows > 1 && route == before) continue;
    text += (text.empty() ? "" : ", ") + std::to_string(rows) + " `" + RowOf(route).name + "`";
    before = route;
  }
  return text;
}

/// The sets of a cell.
std::vector<std::string> SetsOf(const std::string& cell) {
  if (cell != "all") return Split(cell, ',');
  return {std::begin(kSets), std::end(kSets)};
}

/// body(weight, type) for each product of a row, which may list a dense weight beside types that
/// its products do not have.
template <typename Body>
void EachProduct(const std::vector<std::string>& cells, const Body& body) {
  for (const std::string& weight : Split(cells[1], ',')) {
    for (const std::string& type : Split(cells[2], ',')) {
      if (HasProduct(cells[0], weight, type)) body(weight, type);
    }
  }
}

}  // namespace

void CheckRouteTable() {
  Report(!Page().empty(), "docs/cpu-design.md is there");
  std::set<std::string> lines(Page().begin(), Page().end());
  for (int i = 0; i < kRouteCount; ++i) {
    const RouteRow& row = RowOf(static_cast<Route>(i));
    const std::string line = std::string("| `") + row.name + "` (`" + row.file + "`) | " +
                             row.weight + " | " + row.rows + " | " + row.reason + " |";
    Report(lines.count(line) == 1, "docs/cpu-design.md has no line\n" + line);
  }
  // Each product of the whole weight once for each set.
  std::map<std::string, int> seen;
  for (const auto& cells : TableOf("routes by rows")) {
    Report(cells.size() == 6, "routes by rows: six cells a row");
    if (cells.size() != 6 || cells[3] != kWholeShape) continue;
    EachProduct(cells, [&](const std::string& weight, const std::string& type) {
      for (const std::string& set : SetsOf(cells[4])) {
        ++seen[cells[0] + " | " + weight + " | " + type + " | " + set];
      }
    });
  }
  size_t wanted = 0;
  for (const char* product : kProducts) {
    for (const char* weight : kWeights) {
      for (const char* type : kTypes) {
        if (!HasProduct(product, weight, type)) continue;
        for (const char* set : kSets) {
          const std::string key =
              std::string(product) + " | " + weight + " | " + type + " | " + set;
          Report(seen[key] == 1,
                 "routes by rows: once, not " + std::to_string(seen[key]) + " times: " + key);
          ++wanted;
        }
      }
    }
  }
  Report(seen.size() == wanted, "routes by rows: no other products");
}

void CheckRoutes(const KernelTable& table, const std::string& set) {
  for (const auto& cells : TableOf("routes by rows")) {
    if (cells.size() != 6) continue;
    const std::vector<std::string> sets = SetsOf(cells[4]);
    if (std::find(sets.begin(), sets.end(), set) == sets.end()) continue;
    long long N = 0, K = 0;
    char sign[8];
    const bool shape = std::sscanf(cells[3].c_str(), "%lld %7s %lld", &N, sign, &K) == 3;
    Report(shape, "routes by rows: not N × K: " + cells[3]);
    if (!shape) continue;
    EachProduct(cells, [&](const std::string& weight, const std::string& type) {
      const Case c = {cells[0], weight, type, N, K};
      const std::string found = RoutesByRows(table, c);
      Report(found == cells[5], std::string(table.isa) + ", " + c.Name() + ": the routes are " +
                                    found + ", docs/cpu-design.md has " + cells[5]);
    });
  }
}

void PrintRoutes(const KernelTable& table, const std::string& set) {
  for (const char* product : kProducts) {
    for (const char* weight : kWeights) {
      for (const char* type : kTypes) {
        if (!HasProduct(product, weight, type)) continue;
        for (const auto& [N, K] : kShapes) {
          // Products of whole rows of codes take them in groups of 32.
          if (K % 32 != 0 && std::strcmp(product, "y int8") == 0 && weight[4] == '-') continue;
          std::printf("| %s | %s | %s | %lld × %lld | %s | %s |\n", product, weight, type, N, K,
                      set.c_str(), RoutesByRows(table, {product, weight, type, N, K}).c_str());
        }
      }
    }
  }
}

}  // namespace lowrank::cpu
