// UmPrefetch, UmEvict and UmAdvise: operations that take a tensor for its address.
//
// On a GPU they tell the driver where its managed memory shall be; on a CPU, where there is nothing to move, they
// count. They have no output and are ordered by control edges alone. They are stateful, so that TensorFlow's optimisers
// neither drop nor merge nor precompute them. No input is in host memory, or TensorFlow would copy the tensor there.
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#if TFUM_TENSORFLOW_MAJOR == 1
#include "tensorflow/stream_executor/stream.h"
#include "tensorflow/stream_executor/stream_executor_internal.h"
#else
#include "xla/stream_executor/stream.h"
#endif

#include "migrate.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

// The CUDA stream on which a GPU kernel's work is enqueued.
void* ComputeStream(OpKernelContext* context) {
  auto* device_context = context->op_device_context();
  if (device_context == nullptr || device_context->stream() == nullptr) return nullptr;
#if TFUM_TENSORFLOW_MAJOR == 1
  return *static_cast<void**>(device_context->stream()->implementation()->GpuStreamMemberHack());
#else
  return device_context->stream()->platform_specific_handle().stream;
#endif
}

template <tfum_verb verb, bool on_gpu>
class MoveKernel : public OpKernel {
 public:
  explicit MoveKernel(OpKernelConstruction* construction) : OpKernel(construction) {
    if (verb != TFUM_ADVISE) return;
    OP_REQUIRES_OK(construction, construction->GetAttr("advice", &advice_));
    OP_REQUIRES_OK(construction, construction->GetAttr("on_host", &on_host_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& tensor = context->input(0);
    tfum_count(verb, tensor.TotalBytes());
    if (!on_gpu) return;
    const auto address = reinterpret_cast<uint64_t>(tensor.tensor_data().data());
    tfum_move(verb, address, tensor.TotalBytes(), advice_, on_host_, ComputeStream(context));
  }

 private:
  int advice_ = 0;
  bool on_host_ = false;
};

}  // namespace

#define TFUM_REGISTER(name, verb)                                                              \
  REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_CPU), MoveKernel<verb, false>); \
  REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_GPU), MoveKernel<verb, true>)

REGISTER_OP("UmPrefetch")
    .Input("input: T")
    .Attr("T: type")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Starts to move the tensor's managed memory to the device it is placed on.");
REGISTER_OP("UmEvict")
    .Input("input: T")
    .Attr("T: type")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Starts to move the tensor's managed memory to the host.");
REGISTER_OP("UmAdvise")
    .Input("input: T")
    .Attr("T: type")
    .Attr("advice: int >= 1")
    .Attr("on_host: bool = false")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("Gives the driver an advice (a CUmem_advise) about the tensor's managed memory.");

TFUM_REGISTER("UmPrefetch", TFUM_PREFETCH);
TFUM_REGISTER("UmEvict", TFUM_EVICT);
TFUM_REGISTER("UmAdvise", TFUM_ADVISE);

// What this was compiled against, for the check before TensorFlow is given the library: it is read from the file.
extern "C" TFUM_EXPORT const char tfum_built_for[] = "tfum operations for " TFUM_BUILT_FOR;
