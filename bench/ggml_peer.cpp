// The product x * w^T on ggml, with the libraries that a package of node-llama-cpp has: weights in
// the block types of GGUF, repacked for this processor where ggml can, activations quantised to
// int8. Compiled and run by `lowrank bench`; arguments 10 to 12 are the folder of the libraries,
// the name of the type and its number. ggml's headers are not needed: what is used of its C
// interface is declared here.
#include <dirent.h>
#include <dlfcn.h>

#include <array>
#include <cstring>

#include "peer.h"

namespace {

/// The first members of ggml_tensor.
struct Tensor {
  int type;
  struct Buffer* buffer;
};
struct Context;
struct Graph;
struct Backend;
struct Device;
struct Registry;
struct BufferType;
struct InitParams {
  size_t mem_size;
  void* mem_buffer;
  bool no_alloc;
};
using Type = int;
constexpr Type kF32 = 0;

void* g_base = nullptr;
void* g_cpu = nullptr;

/// A function of the libraries, in the type of a pointer to it.
template <typename Function>
Function* Find(const char* name) {
  void* address = dlsym(g_base, name);
  if (address == nullptr) address = dlsym(g_cpu, name);
  if (address == nullptr) peer::Fail(std::string("it has no ") + name);
  return reinterpret_cast<Function*>(address);
}

/// The library of this folder that scores best on this processor; ggml_backend_score is 0 where it
/// cannot run.
void LoadLibraries(const std::string& folder) {
  g_base = dlopen((folder + "/libggml-base.so").c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (g_base == nullptr) peer::Fail("libggml-base.so does not load");
  DIR* entries = opendir(folder.c_str());
  int best = 0;
  std::string chosen;
  for (dirent* entry = readdir(entries); entry != nullptr; entry = readdir(entries)) {
    const std::string name = entry->d_name;
    if (name.rfind("libggml-cpu", 0) != 0) continue;
    void* library = dlopen((folder + "/" + name).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) continue;
    void* score = dlsym(library, "ggml_backend_score");
    const int value = score == nullptr ? 1 : reinterpret_cast<int (*)()>(score)();
    if (value > best) {
      best = value;
      chosen = name;
      g_cpu = library;
    }
  }
  closedir(entries);
  if (g_cpu == nullptr) peer::Fail("none of its libraries runs here");
}

/// The buffer type that repacks weights for this processor, or nullptr.
BufferType* RepackType(Registry* registry, Device* device) {
  using Extra = BufferType**(Device*);
  void* address = Find<void*(Registry*, const char*)>("ggml_backend_reg_get_proc_address")(
      registry, "ggml_backend_dev_get_extra_bufts");
  if (address == nullptr) return nullptr;
  const auto name = Find<const char*(BufferType*)>("ggml_backend_buft_name");
  BufferType** types = reinterpret_cast<Extra*>(address)(device);
  for (; types != nullptr && *types != nullptr; types++) {
    if (std::strstr(name(*types), "REPACK") != nullptr) return *types;
  }
  return nullptr;
}

/// Can the device multiply by a weight of this type in a buffer of this type? Asked as llama.cpp
/// does, with an empty buffer.
bool Multiplies(Device* device, BufferType* buffer_type, Type type, int64_t K, int64_t N,
                int64_t M) {
  const auto tensor_2d = Find<Tensor*(Context*, Type, int64_t, int64_t)>("ggml_new_tensor_2d");
  const size_t overhead = Find<size_t()>("ggml_tensor_overhead")();
  Context* context = Find<Context*(InitParams)>("ggml_init")({4 * overhead, nullptr, true});
  Tensor* weight = tensor_2d(context, type, K, N);
  weight->buffer =
      Find<Buffer*(BufferType*, size_t)>("ggml_backend_buft_alloc_buffer")(buffer_type, 0);
  const Tensor* product = Find<Tensor*(Context*, Tensor*, Tensor*)>("ggml_mul_mat")(
      context, weight, tensor_2d(context, kF32, K, M));
  const bool can =
      Find<bool(Device*, const Tensor*)>("ggml_backend_dev_supports_op")(device, product);
  Find<void(Buffer*)>("ggml_backend_buffer_free")(weight->buffer);
  Find<void(Context*)>("ggml_free")(context);
  return can;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != peer::kArguments + 3) return 2;
  const peer::Job job = peer::ReadJob(argv);
  LoadLibraries(argv[peer::kArguments]);
  const auto [M, K, N] = std::array{job.M, job.K, job.N};
  const std::string type_name = argv[peer::kArguments + 1];
  const Type type = std::atoi(argv[peer::kArguments + 2]);

  Registry* registry = Find<Registry*()>("ggml_backend_init")();
  Device* device = Find<Device*(Registry*, size_t)>("ggml_backend_reg_dev_get")(registry, 0);
  Backend* backend = Find<Backend*(Device*, const char*)>("ggml_backend_dev_init")(device, nullptr);
  const auto proc = Find<void*(Registry*, const char*)>("ggml_backend_reg_get_proc_address");
  if (void* set = proc(registry, "ggml_backend_set_n_threads")) {
    reinterpret_cast<void (*)(Backend*, int)>(set)(backend, job.threads);
  }

  const size_t row_bytes = Find<size_t(Type, int64_t)>("ggml_row_size")(type, K);
  const double weight_bytes = static_cast<double>(row_bytes) * static_cast<double>(N);
  const int64_t copies = peer::Copies(job, weight_bytes);
  const size_t overhead = Find<size_t()>("ggml_tensor_overhead")();
  const size_t graph_overhead = Find<size_t()>("ggml_graph_overhead")();
  const auto init = Find<Context*(InitParams)>("ggml_init");
  const auto tensor_2d = Find<Tensor*(Context*, Type, int64_t, int64_t)>("ggml_new_tensor_2d");
  const auto allocate =
      Find<Buffer*(Context*, BufferType*)>("ggml_backend_alloc_ctx_tensors_from_buft");
  const auto set = Find<void(Tensor*, const void*, size_t, size_t)>("ggml_backend_tensor_set");
  const size_t most = static_cast<size_t>(copies) * overhead + 4096;

  // Weights in memory of their own: setting them there repacks them.
  Context* weights_context = init({most, nullptr, true});
  std::vector<Tensor*> weights;
  for (int64_t i = 0; i < copies; i++) weights.push_back(tensor_2d(weights_context, type, K, N));
  BufferType* plain_type =
      Find<BufferType*(Backend*)>("ggml_backend_get_default_buffer_type")(backend);
  BufferType* repack = RepackType(registry, device);
  if (repack != nullptr && !Multiplies(device, repack, type, K, N, M)) repack = nullptr;
  if (allocate(weights_context, repack != nullptr ? repack : plain_type) == nullptr) {
    peer::Fail("out of memory");
  }
  const std::vector<float> w = peer::Elements(peer::kW, N * K);
  std::vector<char> packed(row_bytes * static_cast<size_t>(N));
  Find<size_t(Type, const float*, void*, int64_t, int64_t, int64_t, const float*)>(
      "ggml_quantize_chunk")(type, w.data(), packed.data(), 0, N, K, nullptr);
  for (Tensor* weight : weights) set(weight, packed.data(), 0, packed.size());

  Context* context = init({2 * most + static_cast<size_t>(copies) * graph_overhead, nullptr, true});
  Tensor* x = tensor_2d(context, kF32, K, M);
  const auto multiply = Find<Tensor*(Context*, Tensor*, Tensor*)>("ggml_mul_mat");
  const auto new_graph = Find<Graph*(Context*)>("ggml_new_graph");
  const auto expand = Find<void(Graph*, Tensor*)>("ggml_build_forward_expand");
  std::vector<Graph*> graphs;
  Tensor* y = nullptr;
  for (Tensor* weight : weights) {
    y = multiply(context, weight, x);
    graphs.push_back(new_graph(context));
    expand(graphs.back(), y);
  }
  if (allocate(context, plain_type) == nullptr) peer::Fail("out of memory");
  const std::vector<float> values = peer::Elements(peer::kX, M * K);
  set(x, values.data(), 0, 4 * values.size());

  const auto compute = Find<int(Backend*, Graph*)>("ggml_backend_graph_compute");
  size_t turn = 0;
  const auto call = [&] {
    if (compute(backend, graphs[turn++ % graphs.size()]) != 0) peer::Fail("it does not compute");
  };
  for (size_t i = 0; i < graphs.size(); i++) call();
  std::vector<float> last(static_cast<size_t>(N));
  Find<void(const Tensor*, void*, size_t, size_t)>("ggml_backend_tensor_get")(
      y, last.data(), static_cast<size_t>(4 * (M - 1) * N), last.size() * 4);
  const std::string note =
      type_name + (repack != nullptr ? " repacked" : "") + ", int8 activations";
  peer::Serve({"", note, weight_bytes, copies, last}, call);
}
