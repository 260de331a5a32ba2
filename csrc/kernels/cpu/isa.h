// One table of kernels for each instruction set, chosen once at run time.
//
// Every kernel file is compiled once for each set, with ADVNAS_ISA defined as the set's name, into a namespace of that name: no
// function compiled for AVX2 can be picked by the linker for a caller that was not. That is also why kernel files include nothing
// from the C++ library but <cstdint> and <cstring>.
//
// A new kernel family adds its entries to Kernels, its name to ADVNAS_KERNEL_FAMILIES, and defines fill_<family> in its file.
#pragma once

#include "../convolution.h"
#include "../depthwise.h"
#include "../gate.h"
#include "../head.h"
#include "../matrix.h"
#include "../node.h"
#include "../norm.h"
#include "../recurrent_node.h"
#include "../winograd.h"

#define ADVNAS_KERNEL_FAMILIES(family)                                                                                       \
  family(gate) family(node) family(norm) family(convolution) family(depthwise) family(head) family(matrix) family(recurrent) \
      family(winograd)

namespace advnas::cpu {

template <class T>
struct Kernels {
  GateForward<T>* gate_forward;
  GateBackward<T>* gate_backward;

  GatherForward<T>* node_forward;
  GatherBackward<T>* node_backward;

  ChannelMoments<T>* channel_moments;
  NodeSums<T>* node_sums;
  JoinMoments<T>* join_moments;
  AddImages<T>* add_images;

  FrameInput<T>* frame_input;
  FrameGradient<T>* frame_gradient;
  PrologueGradient<T>* input_gradient;
  Convolve<T>* convolve;
  ConvolveInputGradient<T>* convolve_input_gradient;
  ConvolveWeightGradient<T>* convolve_weight_gradient;
  AddShares<T>* add_shares;

  HeadForward<T>* head_forward;
  HeadSums<T>* head_sums;
  HeadBackward<T>* head_backward;

  Depthwise<T>* depthwise;
  DepthwiseWeightGradient<T>* depthwise_weight_gradient;
  DepthwiseSpread<T>* depthwise_spread;

  PackMatrix<T>* pack_matrix;
  MultiplyPacked<T>* multiply_packed;

  RecurrentForward<T>* recurrent_forward;
  RecurrentBackward<T>* recurrent_backward;
  RecurrentMean<T>* recurrent_mean;
  RecurrentMeanBackward<T>* recurrent_mean_backward;
  RecurrentMask<T>* recurrent_mask;

  WinogradWeight<T>* winograd_weight;
  WinogradConvolve<T>* winograd_convolve;
  WinogradWeightGradient<T>* winograd_weight_gradient;
  WinogradFinish<T>* winograd_finish;
};

// T: float or double.
template <class T>
const Kernels<T>& kernels();

// "baseline", "avx2" or "avx512": the best that this CPU runs, or what the environment variable ADVNAS_ISA asks for.
const char* isa_name();

// All that were compiled, separated by spaces.
const char* isa_names();

}  // namespace advnas::cpu
