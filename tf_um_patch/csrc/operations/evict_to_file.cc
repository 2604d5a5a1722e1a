// UmEvictToFile and UmRestore: a tensor leaves memory for a file and comes back. For CPUs, which have no second memory.
//
// The file has no name, so that nothing is left behind however the process ends. It is written rather than mapped: a
// full disk is then an error of the step, and not a signal that ends the process. Both are stateful, so that
// TensorFlow's optimisers neither drop nor merge nor precompute them.
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// An open file without a name in a folder, or -1.
int OpenNameless(const std::string& folder) {
  std::string path = folder + "/tfum_evicted_XXXXXX";
  const int file = mkstemp(&path[0]);
  if (file >= 0) unlink(path.c_str());
  return file;
}

bool WriteAll(int file, const char* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t count = pwrite(file, data + done, bytes - done, done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += count;
  }
  return true;
}

bool ReadAll(int file, char* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t count = pread(file, data + done, bytes - done, done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += count;
  }
  return true;
}

class EvictToFileKernel : public OpKernel {
 public:
  explicit EvictToFileKernel(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("folder", &folder_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& tensor = context->input(0);
    Tensor* handle = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({}), &handle));
    const int file = OpenNameless(folder_);
    const auto data = tensor.tensor_data();
    const bool written = file >= 0 && WriteAll(file, data.data(), data.size());
    const std::string reason = written ? "" : strerror(errno);
    if (!written && file >= 0) close(file);
    OP_REQUIRES(context, written,
                tensorflow::errors::ResourceExhausted("a tensor of ", data.size(), " bytes cannot be written to ",
                                                      folder_, " (", reason, "); name a folder with more room"));
    handle->scalar<int>()() = file;
  }

 private:
  std::string folder_;
};

class RestoreKernel : public OpKernel {
 public:
  explicit RestoreKernel(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("shape", &shape_));
  }

  void Compute(OpKernelContext* context) override {
    const int file = context->input(0).scalar<int>()();
    Tensor* tensor = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape_, &tensor));
    const auto data = tensor->tensor_data();
    const bool read = ReadAll(file, const_cast<char*>(data.data()), data.size());
    close(file);
    OP_REQUIRES(context, read, tensorflow::errors::DataLoss("a tensor that was written to a file cannot be read back"));
  }

 private:
  TensorShape shape_;
};

}  // namespace

#define TFUM_EVICTED "T: {half, bfloat16, float, double, int32, int64, uint8}"

REGISTER_OP("UmEvictToFile")
    .Input("input: T")
    .Output("handle: int32")
    .Attr(TFUM_EVICTED)
    .Attr("folder: string")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc("Writes the tensor to a nameless file in the folder; UmRestore takes the handle, once.");
REGISTER_OP("UmRestore")
    .Input("handle: int32")
    .Output("output: T")
    .Attr(TFUM_EVICTED)
    .Attr("shape: shape")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ExplicitShape)
    .Doc("Reads back what UmEvictToFile wrote, and gives up its file.");

REGISTER_KERNEL_BUILDER(Name("UmEvictToFile").Device(tensorflow::DEVICE_CPU), EvictToFileKernel);
REGISTER_KERNEL_BUILDER(Name("UmRestore").Device(tensorflow::DEVICE_CPU), RestoreKernel);
