// Runs a detector without Python: the TorchScript file of `d2-deformable export`, on one image.
//
//   detect detector.pt image.ppm LIBRARY ...
//
// Prints class, score and box (x0, y0, x1, y1) of each detection. How to build it, and which
// libraries there are: README.md.

#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/jit/serialization/import.h>

#include <fstream>
#include <iostream>

// A binary PPM file (P6, RGB) of the size that the network is to see, as a tensor (3, H, W).
at::Tensor read_ppm(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, maximum = 0;
  file >> magic >> width >> height >> maximum;
  file.get();  // the one blank after the header
  TORCH_CHECK(file && magic == "P6" && maximum == 255, path, " is no binary PPM file of 8 bits");
  at::Tensor pixels = at::empty({height, width, 3}, at::kByte);
  file.read(reinterpret_cast<char*>(pixels.data_ptr<uint8_t>()), pixels.numel());
  TORCH_CHECK(file, path, " is truncated");
  return pixels.permute({2, 0, 1}).flip(0).to(at::kFloat);  // flip: INPUT.FORMAT is BGR
}

int main(int argc, char** argv) try {
  TORCH_CHECK(argc > 3, "usage: detect detector.pt image.ppm LIBRARY ...");
  for (int i = 3; i < argc; ++i)  // a library's operators register themselves
    TORCH_CHECK(dlopen(argv[i], RTLD_LAZY | RTLD_GLOBAL), dlerror());
  torch::jit::Module network = torch::jit::load(argv[1]);
  c10::InferenceMode inference;
  auto outputs = network.forward({read_ppm(argv[2])}).toTuple();
  at::Tensor boxes = outputs->elements()[0].toTensor();    // (D, 4)
  at::Tensor scores = outputs->elements()[1].toTensor();   // (D,)
  at::Tensor classes = outputs->elements()[2].toTensor();  // (D,)
  for (int64_t d = 0; d < boxes.size(0); ++d) {
    std::cout << classes[d].item<int64_t>() << ' ' << scores[d].item<float>();
    for (int64_t k = 0; k < 4; ++k) std::cout << ' ' << boxes[d][k].item<float>();
    std::cout << '\n';
  }
} catch (const c10::Error& error) {
  std::cerr << error.what_without_backtrace() << '\n';
  return 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
