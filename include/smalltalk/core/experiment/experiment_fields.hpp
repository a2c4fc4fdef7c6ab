// The one list of the experiment's keys; included by experiment.hpp. A key counts in the hash of
// the experiment unless decides_nothing() in experiment.cpp names it.
#pragma once

#include <string>

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

template <typename F>
void visit_model_fields(const std::string& section, ModelConfig& model, F&& f) {
  f(section + ".hidden_size", model.hidden_size, "H, width of the residual stream");
  f(section + ".num_layers", model.num_layers, "L, transformer blocks");
  f(section + ".num_heads", model.num_heads, "query heads; must divide hidden_size");
  f(section + ".num_kv_heads", model.num_kv_heads, "key and value heads; 0: as num_heads");
  f(section + ".intermediate_size", model.intermediate_size,
    "feed-forward width; 0: 4 H (relu2), 8/3 H (swiglu)");
  f(section + ".feed_forward", model.feed_forward, "swiglu or relu2 (the paper's plain FFN)");
  f(section + ".tie_embeddings", model.tie_embeddings, "one matrix for input and output tokens");
  f(section + ".rope_theta", model.rope_theta, "base of the rotary frequencies");
  f(section + ".rms_norm_eps", model.rms_norm_eps, "added inside the root of RMSNorm");
  f(section + ".init_std", model.init_std,
    "standard deviation of the initial matrices; 0: 0.5 / sqrt(H)");
  f(section + ".embedding_std", model.embedding_std,
    "standard deviation of the initial embedding; 0: 1 / sqrt(H)");
}

template <typename F>
void visit_train_fields(const std::string& section, TrainConfig& train, F&& f) {
  f(section + ".batch_size", train.batch_size, "sequences per optimiser step");
  f(section + ".micro_batch_size", train.micro_batch_size,
    "sequences per rank per forward pass; 0: the rank's whole share, or, of what experts train on "
    "GPUs, as much of it as fits");
  f(section + ".lr", train.lr, "peak learning rate");
  f(section + ".min_lr", train.min_lr, "learning rate at the end of the decay");
  f(section + ".warmup_steps", train.warmup_steps, "steps of linear warm-up");
  f(section + ".lr_decay", train.lr_decay,
    "constant; cosine or linear from the warm-up on; wsd (a line) or wsd_sqrt over the last steps");
  f(section + ".decay_steps", train.decay_steps, "how many those are; 0 for all but wsd, wsd_sqrt");
  f(section + ".weight_decay", train.weight_decay, "AdamW decay of matrices");
  f(section + ".adam_beta1", train.adam_beta1, "");
  f(section + ".adam_beta2", train.adam_beta2, "");
  f(section + ".adam_eps", train.adam_eps, "");
  f(section + ".grad_clip", train.grad_clip, "largest gradient norm; 0: off");
  f(section + ".recompute", train.recompute,
    "what the backward pass computes again to save memory: none, selective (norms and "
    "activations), full (all of a layer), auto (of experts on GPUs the least with which they fit, "
    "else none)");
  f(section + ".log_interval", train.log_interval, "steps between log lines");
  f(section + ".save_interval", train.save_interval, "steps between checkpoints");
  f(section + ".keep_last", train.keep_last, "newest checkpoints that are kept, 1 at least");
  f(section + ".keep_every", train.keep_every,
    "checkpoints of steps that are multiples of it are made, too, and kept for ever; 0: none are");
  f(section + ".tensorboard", train.tensorboard, "metrics also into tensorboard/ of the model");
  f(section + ".outlier_zscore", train.outlier_zscore,
    "report steps whose loss or gradient norm is this many standard deviations above the mean of "
    "the last 128; 0: off");
  f(section + ".outlier_skip", train.outlier_skip, "leave out the updates of such steps");
  f(section + ".skip_nonfinite", train.skip_nonfinite,
    "leave out steps whose loss or gradient is not finite (10 in a row at most) rather than end");
}

template <typename F>
void visit_fields(Experiment& e, F&& f) {
  f(std::string("name"), e.name, "name of the run, for people");
  f(std::string("seed"), e.seed, "all random numbers are functions of it");

  f(std::string("data.train"), e.data.train,
    "training text: files, folders, globs, \"@FILE\" for a list of them");
  f(std::string("data.validation"), e.data.validation, "held-out text for choices");
  f(std::string("data.test"), e.data.test, "held-out text for results");
  f(std::string("data.text_key"), e.data.text_key,
    "field of a JSON line that is the text; \"a.b\" is field b in field a");
  f(std::string("data.domain_key"), e.data.domain_key,
    "field that is its domain, for reports only; empty: none");
  f(std::string("data.lines"), e.data.lines, "each line of a .txt is a document, not the whole");
  f(std::string("data.tokenizer"), e.data.tokenizer, "SentencePiece model; empty: train one");
  f(std::string("data.vocab_size"), e.data.vocab_size, "V, of the tokenizer to train");
  f(std::string("data.tokenizer_sample_bytes"), e.data.tokenizer_sample_bytes,
    "bytes of training text that the tokenizer is trained on");
  f(std::string("data.max_bad_fraction"), e.data.max_bad_fraction,
    "largest share of broken documents that is tolerated");
  f(std::string("data.seq_length"), e.data.seq_length, "S, tokens of a sequence");
  f(std::string("data.packing"), e.data.packing,
    "concat: documents end to end; documents: each begins a sequence or shares one, best fit");
  f(std::string("data.order"), e.data.order,
    "of the training documents, file: as in the files; similar: neighbours are alike (see the job "
    "order), with packing = concat");
  f(std::string("data.document_mask"), e.data.document_mask, "attention does not cross documents");

  f(std::string("mixture.experts"), e.mixture.experts,
    "E, routers and experts; 0: none, the other models train for the FLOPs of expert.train_steps");
  f(std::string("mixture.prefix_tokens"), e.mixture.prefix_tokens, "M, tokens that routers see");
  f(std::string("mixture.rounds"), e.mixture.rounds, "T, rounds of the EM");
  f(std::string("mixture.sequences_per_round"), e.mixture.sequences_per_round,
    "N, new sequences of a round, over all routers");
  f(std::string("mixture.assignment"), e.mixture.assignment,
    "who chooses first: greedy (best score, the paper's), margin, or optimal (largest total); "
    "argmax: not balanced");
  f(std::string("mixture.sharding"), e.mixture.sharding,
    "who shards the training text: routers, by all prefixes (the paper's), or ngrams, at no cost, "
    "learned from what routers were given in the last third of the rounds");
  f(std::string("mixture.group_size"), e.mixture.group_size,
    "ranks that train one expert; 0: as many as the world gives");

  visit_model_fields("router", e.router_model, f);
  visit_train_fields("router", e.router_train, f);
  visit_model_fields("expert", e.expert_model, f);
  f(std::string("expert.train_steps"), e.expert_train.steps, "optimiser steps of one expert");
  visit_train_fields("expert", e.expert_train, f);

  f(std::string("baselines.dense"), e.baselines.dense,
    "dense model: the expert's batch, steps x E");
  f(std::string("baselines.dense_large_batch"), e.baselines.dense_large_batch,
    "dense model: batch x E, the expert's steps");
  f(std::string("baselines.random_shards"), e.baselines.random_shards,
    "control: the same experts on random shards");
  f(std::string("baselines.tfidf_shards"), e.baselines.tfidf_shards,
    "control: the same experts on shards by TF-IDF, SVD and balanced k-means");
  f(std::string("baselines.dense_lr"), e.baselines.dense_lr, "0: the expert's");
  f(std::string("baselines.dense_large_batch_lr"), e.baselines.dense_large_batch_lr,
    "0: the expert's");
  f(std::string("baselines.dense_warmup_steps"), e.baselines.dense_warmup_steps,
    "0: the same share of its steps as of the expert's, another one whenever those grow");
  f(std::string("baselines.dense_large_batch_warmup_steps"),
    e.baselines.dense_large_batch_warmup_steps, "the same");

  f(std::string("lory.experts"), e.lory.experts,
    "experts that each feed-forward of a Lory model is merged from; 0: none is trained");
  f(std::string("lory.segment_tokens"), e.lory.segment_tokens,
    "tokens for which experts are merged anew");
  f(std::string("lory.layers"), e.lory.layers,
    "layers that hold experts, from 0, as \"2-5,7\"; empty: all");
  f(std::string("lory.routing"), e.lory.routing,
    "what decides how: previous, the segment before; prefix, the first one for all");
  f(std::string("lory.first_segment"), e.lory.first_segment,
    "in training: own, by its own mean (the paper's, which looks ahead); uniform, all experts "
    "alike, "
    "as when the model is used");
  f(std::string("lory.dense_warmup"), e.lory.dense_warmup,
    "share of its steps in which the model is dense; its feed-forwards then become all experts");
  f(std::string("lory.train_steps"), e.lory.train_steps,
    "its steps; 0: until its training FLOPs are those of the mixture");
  f(std::string("lory.lr"), e.lory.lr, "0: the expert's");
  f(std::string("lory.tensor_parallel"), e.lory.tensor_parallel,
    "in a group, each rank holds a slice of every expert's hidden dimension: less memory, but "
    "what goes through the experts is sent in every layer");

  f(std::string("device.device"), e.device.device, "cpu or cuda");
  f(std::string("device.precision"), e.device.precision, "float32 or bf16-mixed (cuda only)");
  f(std::string("device.threads"), e.device.threads,
    "compute threads per rank on the CPU; on a GPU those of the assignment");
  f(std::string("device.flops_per_second"), e.device.flops_per_second,
    "rate per device, for the MFU and for the estimates of --dry-run; 0: the rate of a large "
    "product, measured (MFU), 5e10 or on a GPU 4e14 (estimates)");
  f(std::string("device.trace_steps"), e.device.trace_steps,
    "\"10:20\": write steps 10 to 19 of each model to its trace.json, for Perfetto; empty: none");
}

}  // namespace smalltalk
