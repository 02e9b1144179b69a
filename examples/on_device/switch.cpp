// Several stitches of one file, opened with their weights in memory once, and switched between.
//
//   switch_stitches stitches.pte [--no-cache] stitch_3 stitch_24 ...
//
// Prints a line of JSON for each method (milliseconds to load it, to run it again and again, and to run it after a
// switch, anonymous memory in bytes when it is loaded), and one for the whole.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

using executorch::extension::Module;
using executorch::extension::from_blob;
using executorch::runtime::BackendOptions;
using executorch::runtime::Error;

namespace {

double now() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

// Anonymous memory of this process, as Linux counts it, in bytes.
long anonymous_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("RssAnon:", 0) == 0) {
      return std::stol(line.substr(8)) * 1024;
    }
  }
  return 0;
}

// The middle one of the times of `runs` calls.
template <class Call>
double median_ms(int runs, Call call) {
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    const double start = now();
    call();
    times.push_back(now() - start);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void check(Error error, const std::string& what) {
  if (error != Error::Ok) {
    std::fprintf(stderr, "error: %s failed with 0x%x\n", what.c_str(), static_cast<int>(error));
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: switch_stitches FILE.pte [--no-cache] METHOD...\n");
    return 2;
  }
  std::vector<std::string> methods(argv + 2, argv + argc);
  const bool cache = methods.front() != "--no-cache";
  if (!cache) {
    methods.erase(methods.begin());
  }

  // Before anything is loaded: weights that methods share are packed and kept once.
  BackendOptions<1> options;
  check(options.set_option("weight_cache_enabled", cache), "the option");
  check(executorch::runtime::set_option("XnnpackBackend", options.view()), "setting the option");

  // One method runs at a time, so their activations share memory too: copy an output before the next method runs.
  constexpr bool kShareActivations = true;
  Module module(argv[1], Module::LoadMode::Mmap, nullptr, nullptr, nullptr, kShareActivations);
  check(module.load(), "loading the file");
  const long before = anonymous_bytes();

  std::vector<std::vector<float>> pixels;
  std::vector<executorch::extension::TensorPtr> images;
  const auto run = [&](size_t i) { check(module.execute(methods[i], *images[i]).error(), methods[i]); };
  for (size_t i = 0; i < methods.size(); ++i) {
    const double start = now();
    check(module.load_method(methods[i]), methods[i]);
    const double loaded = now() - start;
    const auto meta = module.method_meta(methods[i]);
    const auto input = meta->input_tensor_meta(0);
    std::vector<executorch::aten::SizesType> sizes(input->sizes().begin(), input->sizes().end());
    pixels.emplace_back(input->nbytes() / sizeof(float), 0.5f);
    images.push_back(from_blob(pixels.back().data(), sizes));
    run(i);  // the first run prepares what is left to prepare
    std::printf("{\"method\": \"%s\", \"load_ms\": %.3f, \"anonymous_bytes\": %ld}\n", methods[i].c_str(), loaded,
                anonymous_bytes() - before);
  }

  // A switch is a call of another method; what it costs beside the run itself shows in turns.
  constexpr int kRuns = 51;
  for (size_t i = 0; i < methods.size(); ++i) {
    const double again = median_ms(kRuns, [&] { run(i); });
    std::vector<double> after;
    for (int n = 0; n < kRuns; ++n) {
      run((i + 1) % methods.size());
      const double start = now();
      run(i);
      after.push_back(now() - start);
    }
    std::sort(after.begin(), after.end());
    std::printf("{\"method\": \"%s\", \"run_ms\": %.4f, \"after_a_switch_ms\": %.4f}\n", methods[i].c_str(), again,
                after[kRuns / 2]);
  }
  std::printf("{\"weight_cache\": %s, \"methods\": %zu, \"anonymous_bytes\": %ld}\n", cache ? "true" : "false",
              methods.size(), anonymous_bytes() - before);
  return 0;
}
