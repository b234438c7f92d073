/// The ops that a decoder has around its linear layers, for cuda_plan_table.cpp.
#pragma once

#include "test/native/cuda_plan_operands.h"

namespace lowrank::plan_table {

/// The norms of a decoder, over M tokens of D features.
template <typename Card>
void AddNorms(DType dtype, int64_t M, int64_t D, Card* card) {
  RmsNormOp norm;
  norm.x = Matrix(dtype, M, D);
  norm.residual = Matrix(dtype, M, D);
  norm.g = Matrix(dtype, 1, D);
  norm.sum = Matrix(dtype, M, D);
  norm.y = Matrix(dtype, M, D);
  norm.inv_rms = Matrix(DType::kF32, 1, M);
  card->Add(norm);
  RmsNormBackwardOp backward;
  backward.dy = norm.y;
  backward.s = norm.sum;
  backward.g = norm.g;
  backward.inv_rms = norm.inv_rms;
  backward.d_sum = norm.residual;
  backward.dx = Matrix(dtype, M, D);
  backward.dg = Matrix(DType::kF32, 1, D);
  card->Add(backward);
}

/// The two ends of a decoder, with a vocabulary of 128,256.
template <typename Card>
void AddEnds(DType dtype, const char* format, int64_t M, int64_t D, Card* card) {
  const int64_t V = 128256;
  EmbeddingOp embedding;
  embedding.table = Weight(format, dtype, false, V, D);
  embedding.ids.data = Some<int32_t>();
  embedding.ids.count = M;
  embedding.ids.limit = V;
  embedding.ids.present = true;
  embedding.y = Matrix(dtype, M, D);
  card->Add(embedding);
  LinearCrossEntropyOp loss;
  loss.x = embedding.y;
  loss.head = embedding.table;
  loss.targets = embedding.ids;
  loss.losses = Matrix(DType::kF32, 1, M);
  loss.dx = Matrix(dtype, M, D);
  card->Add(loss);
}

}  // namespace lowrank::plan_table
