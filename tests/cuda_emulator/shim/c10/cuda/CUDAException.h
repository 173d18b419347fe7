// The part that the host code uses.
#pragma once

#include <c10/util/Exception.h>

#include "cuda_runtime.h"

#define C10_CUDA_CHECK(error) TORCH_CHECK((error) == cudaSuccess)
